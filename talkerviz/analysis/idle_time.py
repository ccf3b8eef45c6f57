"""Time that no module has: what a run does between the outermost calls and after them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkerviz.analysis.frame_latency import times_of_calls
from talkerviz.trace.runs import end_of_run
from talkerviz.trace.trace import TraceRecord


@dataclass(frozen=True)
class Outside:
    """How much of a run is in no call, of all its runs and ranks together.

    Attributes:
        ns: while no call went on, on any thread: backward, optimizers, sampling, other code.
        span_ns: since the first call began, until the run ended, or its last call where that is not known.
    """

    ns: int
    span_ns: int


def time_outside(trace: TraceRecord) -> Outside | None:
    """How much of a run is in no call; None where no times are known, and of a selection that leaves calls out."""
    start, length = times_of_calls(trace.calls)
    calls = trace.calls[["call", "run", "rank", "depth"]].assign(start=start, end=start + length)
    outside = span = 0.0
    for (run, _), part in calls.groupby(["run", "rank"]):
        top = part[part["depth"] == 0].sort_values("start")
        if (
            part["call"].max() - part["call"].min() >= len(part)
            or top.empty
            or top[["start", "end"]].isna().any(axis=None)
        ):
            return None
        until = top["end"].cummax().to_numpy(float)
        last = max(until[-1], end_of_run(trace, int(run)) or 0)
        between = np.append(top["start"].to_numpy(float)[1:], last) - until
        outside += between.clip(min=0).sum()
        span += last - top["start"].iloc[0]
    return Outside(round(outside), round(span)) if len(calls) else None
