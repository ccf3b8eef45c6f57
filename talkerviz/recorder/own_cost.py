"""What recording a call costs."""

from __future__ import annotations

import functools
import math
from time import perf_counter_ns

import torch
from torch import Tensor, nn

from talkerviz.recorder.cuda_clock import CudaClock
from talkerviz.recorder.tap import Tap
from talkerviz.recorder.tensors import Signatures, is_tracing, kind_of

_CALLS, _ROUNDS = 500, 7


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
