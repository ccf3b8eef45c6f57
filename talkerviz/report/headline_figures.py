"""The numbers of a report: those that it opens with, and its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from talkerviz.analysis.frame_latency import FRAME_NS, FrameSummary, frame_summary
from talkerviz.analysis.summary import summarise
from talkerviz.render.text import factor_text, share_text, time_text
from talkerviz.trace import TraceRecord
from talkerviz.trace.labels import format_count

TABLES = ("phase", "frame", "layer", "class", "module")
"""What a report has a table of."""


@dataclass(frozen=True)
class Number:
    """One that it opens with.

    Attributes:
        label: what it is.
        value: as people read it.
        hint: what it is made of.
    """

    label: str
    value: str
    hint: str = ""


@dataclass(frozen=True)
class Figures:
    """All of them.

    Attributes:
        numbers: what it opens with: how fast frames came, where the time went, how many calls there were; what is not
            known is left out.
        tables: what `summarise` finds by each of `TABLES`.
        frames: how fast frames came; None where there are none.
    """

    numbers: tuple[Number, ...]
    tables: Mapping[str, pd.DataFrame]
    frames: FrameSummary | None


def figures_of(trace: TraceRecord) -> Figures:
    """The numbers of a trace, or of what `Trace.select` left of it."""
    tables = {by: summarise(trace, by) for by in TABLES}
    frames = frame_summary(trace)
    return Figures((*_of_frames(frames), *_of_calls(trace, tables)), tables, frames)


def _of_frames(summary: FrameSummary | None) -> list[Number]:
    if summary is None:
        return []
    found = []
    if summary.first_ns is not None:
        found.append(Number("first frame after", time_text(summary.first_ns), "from the first call on"))
    if summary.p50_ns is not None:
        later = summary.frames - summary.runs * (summary.first_ns is not None)
        found.append(Number("frame, p50", time_text(summary.p50_ns), f"of {later:,} frames after the first"))
        jitter = f"jitter {time_text(summary.jitter_ns)}" if summary.jitter_ns is not None else ""
        found.append(Number("frame, p95", time_text(summary.p95_ns), jitter))
    if summary.real_time_factor is not None:
        hint = f"{time_text(FRAME_NS)} of speech in {time_text(summary.mean_ns)}"
        found.append(Number("real time", factor_text(summary.real_time_factor), hint))
    return found


def _of_calls(trace: TraceRecord, tables: Mapping[str, pd.DataFrame]) -> list[Number]:
    found = []
    calls = trace.calls
    if len(calls) and calls["host_ns"].notna().all():
        for by in ("phase", "class"):
            busiest = tables[by].iloc[int(tables[by]["self_ns"].to_numpy("int64").argmax())]
            if len(tables[by]) > 1 and busiest[by]:
                found.append(Number(f"busiest {by}", str(busiest[by]), f"{share_text(busiest['share'])} of the time"))
        inside = int(calls["host_self_ns"].sum())
        found.append(Number("time in calls", time_text(inside), f"mean {time_text(inside / len(calls))} a call"))
    return [*found, Number("calls", f"{len(calls):,}", f"of {format_count(calls['path'].nunique(), 'module')}")]
