"""What measures a call, and what the measuring costs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from time import perf_counter_ns

import torch
from torch import Tensor, nn

from talkerviz.recorder.busy import BusyMeter
from talkerviz.recorder.cost import CostMeter
from talkerviz.recorder.cuda_clock import CudaClock
from talkerviz.recorder.cuda_memory import MemoryMeter
from talkerviz.recorder.flow import FlowMeter
from talkerviz.recorder.gauge import Gauge
from talkerviz.recorder.tap import Tap
from talkerviz.recorder.tensors import Signatures, is_tracing, kind_of

CLOCKS = ("cpu", "cuda", "none")
MEASURES = ("cost", "memory", "busy", "flow")
"""What can be measured in a run of its own."""

_CALLS, _ROUNDS = 500, 7


def check_measure(measure: str) -> None:
    """Raise ValueError for anything but `MEASURES`."""
    if measure not in MEASURES:
        raise ValueError(f"cannot measure {measure!r}: choose from {', '.join(MEASURES)}")


def make_gauges(
    clock: str,
    measure: str | None,
    thread: Callable[[], int],
    origin_ns: int,
    devices: tuple[int, ...],
    model: nn.Module,
    mark: Callable[[], int],
) -> list[Gauge]:
    """What a recording stamps at the edges of calls beside the host's time; see `recording` for the first two.

    Args:
        clock: one of `CLOCKS`.
        measure: one of `MEASURES`, or None.
        thread: gives the number of the calling thread.
        origin_ns: the host's time that counts as 0.
        devices: numbers of the CUDA devices that the model is on.
        model: the model.
        mark: gives the number of the mark in force.

    Raises:
        ValueError: unknown, or not possible here.
    """
    if clock not in CLOCKS:
        raise ValueError(f"unknown clock {clock!r}: choose from {', '.join(CLOCKS)}")
    if measure is not None:
        check_measure(measure)
    needs_cuda = "clock 'cuda'" if clock == "cuda" else f"{measure!r}" if measure in ("memory", "busy") else None
    if needs_cuda and not devices:
        raise ValueError(f"{needs_cuda} needs a model on a CUDA device")
    gauges: list[Gauge] = [CudaClock(thread, origin_ns, devices)] if clock == "cuda" else []
    if measure == "cost":
        gauges.append(CostMeter(thread))
    elif measure == "flow":
        gauges.append(FlowMeter(thread, model, mark))
    elif measure == "memory":
        if len(devices) > 1:
            raise ValueError(f"'memory' measures one device, and the model is on {len(devices)}")
        gauges.append(MemoryMeter(thread, devices[0]))
    elif measure == "busy":
        gauges.append(BusyMeter(thread))
    return gauges


@functools.cache
def own_cost_ns(device: int | None = None) -> int:
    """What recording one call of one tensor adds to the run on this machine, in nanoseconds.

    It falls outside the call's own time and into its caller's self time. Measured on a small matrix product, over and
    over; between calls that differ it is more, as the processor's caches are then not warm.

    Args:
        device: the CUDA device whose clock is stamped as well.
    """
    model, tensor = nn.Linear(64, 64), torch.zeros(1, 64)
    signatures = Signatures([()])
    below = nn.Module.__call__
    stamps = [] if device is None else [CudaClock(lambda: 0, 0, (device,))]
    tap = Tap(
        tensor=Tensor,
        parameter=nn.Parameter,
        below=below,
        of_inputs=signatures.of_inputs,
        of_output=signatures.of_output,
        kind_of=kind_of,
        tracing=is_tracing,
        entered=lambda module, kwargs: -1,
        left=lambda module: -1,
        failed=lambda error: 0,
        started=lambda: -1,
        full=lambda: None,
        stamp=stamps[0].stamp if stamps else None,
        timed=True,
        limit=4 * _CALLS * _ROUNDS,
    )
    tap.watch(model, 0, False, True)
    best = [math.inf, math.inf]
    with torch.no_grad():
        for _ in range(_ROUNDS):
            for which, call in enumerate((below, tap.call)):
                began = perf_counter_ns()
                for _ in range(_CALLS):
                    call(model, tensor)
                best[which] = min(best[which], perf_counter_ns() - began)
    tap.close()
    return max(1, round((best[1] - best[0]) / _CALLS))
