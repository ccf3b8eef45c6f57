"""Idle time: the part of a run outside all calls, such as backward, optimizers and sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkerviz.analysis.frame_latency import call_times
from talkerviz.trace.runs import end_of_run
from talkerviz.trace.trace import TraceRecord


@dataclass(frozen=True)
class IdleTime:
    """Time outside all calls, summed over runs and ranks.

    Attributes:
        idle_ns: time without an open call on any thread.
        span_ns: time from the first call to the end of the run, or to the end of the last call if that is unknown.
    """

    idle_ns: int
    span_ns: int


def idle_time(trace: TraceRecord) -> IdleTime | None:
    """Sum the time outside all calls; None for a trace without times and for a selection that leaves calls out."""
    start, duration = call_times(trace.calls)
    calls = trace.calls[["call", "run", "rank", "depth"]].assign(start=start, end=start + duration)
    idle = span = 0.0
    for (run, _), part in calls.groupby(["run", "rank"]):
        top = part[part["depth"] == 0].sort_values("start")
        if (
            part["call"].max() - part["call"].min() >= len(part)
            or top.empty
            or top[["start", "end"]].isna().any(axis=None)
        ):
            return None
        busy_until = top["end"].cummax().to_numpy(float)
        end = max(busy_until[-1], end_of_run(trace, int(run)) or 0)
        gaps = np.append(top["start"].to_numpy(float)[1:], end) - busy_until
        idle += gaps.clip(min=0).sum()
        span += end - top["start"].iloc[0]
    return IdleTime(round(idle), round(span)) if len(calls) else None
