"""What a recording stamps at the edges of calls, beside the host's time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from talkerviz.recorder.dataflow.offloaded_weights import parameter_devices
from talkerviz.recorder.dataflow.tracker import FlowTracker
from talkerviz.recorder.instruments.base import Gauge
from talkerviz.recorder.instruments.cuda_clock import CudaClock
from talkerviz.recorder.instruments.flop_counter import CostMeter
from talkerviz.recorder.instruments.kernel_time import BusyMeter
from talkerviz.recorder.instruments.memory import MemoryMeter
from talkerviz.trace.event_log import Mark

CLOCKS = ("cpu", "cuda", "none")
MEASURES = ("cost", "memory", "busy", "flow")
"""What can be measured in a run of its own."""


def clock_for(model: nn.Module) -> str:
    """The clock that tells most of a model: `cuda` where any of its parameters is, else `cpu`."""
    return "cuda" if cuda_devices(model) else "cpu"


def cuda_devices(model: nn.Module) -> tuple[int, ...]:
    """The numbers of the CUDA devices that a model's parameters are on, or are moved to."""
    return tuple(sorted({device.index or 0 for device in parameter_devices(model) if device.type == "cuda"}))


def check_measure(measure: str, devices: Sequence[int]) -> None:
    """Check that something can be measured.

    Args:
        measure: one of `MEASURES`.
        devices: numbers of the CUDA devices that the model is on.

    Raises:
        ValueError: unknown, or not possible on these devices.
    """
    if measure not in MEASURES:
        raise ValueError(f"cannot measure {measure!r}: choose from {', '.join(MEASURES)}")
    if measure in ("memory", "busy") and not devices:
        raise ValueError(f"{measure!r} needs a model on a CUDA device")
    if measure == "memory" and len(devices) > 1:
        raise ValueError(f"'memory' measures one device, and the model is on {len(devices)}")


def make_gauges(
    clock: str,
    measure: str | None,
    thread: Callable[[], int],
    origin_ns: int,
    devices: tuple[int, ...],
    model: nn.Module,
    mark: Callable[[], int],
    marks: Sequence[Mark],
    fault: Callable[[Exception], None],
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
        marks: the recording's, by number; more are added to it.
        fault: called with an exception of an instrument's own bookkeeping.

    Raises:
        ValueError: unknown, or not possible here.
    """
    if clock not in CLOCKS:
        raise ValueError(f"unknown clock {clock!r}: choose from {', '.join(CLOCKS)}")
    if clock == "cuda" and not devices:
        raise ValueError("clock 'cuda' needs a model on a CUDA device")
    if measure is not None:
        check_measure(measure, devices)
    gauges: list[Gauge] = [CudaClock(thread, origin_ns, devices)] if clock == "cuda" else []
    if measure == "cost":
        gauges.append(CostMeter(thread, fault))
    elif measure == "flow":
        gauges.append(FlowTracker(thread, model, mark, marks, fault))
    elif measure == "memory":
        gauges.append(MemoryMeter(thread, devices[0]))
    elif measure == "busy":
        gauges.append(BusyMeter(thread))
    return gauges
