"""What measures a call, and what the measuring costs."""

from __future__ import annotations

import functools
import statistics
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.record.tap import Tap

CLOCKS = ("cpu", "none")

_CALLS, _ROUNDS = 500, 7


class _Bare(nn.Module):
    def forward(self, x: Any) -> Any:
        return x


@functools.cache
def own_cost_ns() -> int:
    """What recording one call of one tensor adds to the run on this machine, in nanoseconds.

    It falls outside the call's own time and into its caller's self time.
    """
    bare, tensor = _Bare(), torch.empty(1)
    below = nn.Module.__call__
    tap = Tap(
        tensor=Tensor,
        parameter=nn.Parameter,
        below=below,
        of_inputs=lambda args, kwargs: 0,
        of_output=lambda output: 0,
        kind_of=lambda kind: 0,
        entered=lambda module, kwargs: -1,
        left=lambda module: -1,
        failed=lambda error: 0,
        started=lambda: -1,
        full=lambda: None,
        stamp=None,
        timed=True,
        limit=4 * _CALLS * _ROUNDS,
    )
    tap.watch(bare, 0, below, False)
    added = []
    for _ in range(_ROUNDS):
        times = []
        for call in (below, tap.call):
            began = perf_counter_ns()
            for _ in range(_CALLS):
                call(bare, tensor)
            times.append(perf_counter_ns() - began)
        added.append((times[1] - times[0]) / _CALLS)
    tap.close()
    return max(0, round(statistics.median(added)))
