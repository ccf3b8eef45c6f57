"""Figures of a report: headline figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from talkerviz.analysis.frame_latency import FrameSummary, frame_summary
from talkerviz.analysis.summary import summarise
from talkerviz.render.text import factor_text, share_text, time_text
from talkerviz.trace import TraceRecord
from talkerviz.trace.labels import format_count

TABLES = ("phase", "frame", "layer", "class", "module")
"""Tables of a report, by their rows."""


@dataclass(frozen=True)
class Number:
    """Headline figure.

    Attributes:
        label: name of the figure.
        value: value with its unit.
        hint: explanation of the value.
    """

    label: str
    value: str
    hint: str = ""


@dataclass(frozen=True)
class Figures:
    """Figures of a report.

    Attributes:
        numbers: headline figures: frame latency, busiest phase and class, number of calls, as far as known.
        tables: results of `summarise` by `TABLES`.
        frames: frame latencies; None without frames.
    """

    numbers: tuple[Number, ...]
    tables: Mapping[str, pd.DataFrame]
    frames: FrameSummary | None


def figures_of(trace: TraceRecord) -> Figures:
    """Compute the figures of a trace."""
    tables = {by: summarise(trace, by) for by in TABLES}
    frames = frame_summary(trace)
    return Figures((*_frame_numbers(frames), *_call_numbers(trace, tables)), tables, frames)


def _frame_numbers(summary: FrameSummary | None) -> list[Number]:
    if summary is None:
        return []
    found = []
    if summary.first_ns is not None:
        found.append(Number("first frame after", time_text(summary.first_ns), "since the first call"))
    if summary.p50_ns is not None:
        later = summary.frames - summary.runs * (summary.first_ns is not None)
        found.append(Number("frame, p50", time_text(summary.p50_ns), f"of {later:,} frames after the first"))
        jitter = f"jitter {time_text(summary.jitter_ns)}" if summary.jitter_ns is not None else ""
        found.append(Number("frame, p95", time_text(summary.p95_ns), jitter))
    if summary.real_time_factor is not None and summary.mean_ns is not None:
        speech_ns = round(summary.real_time_factor * summary.mean_ns)
        hint = f"{time_text(speech_ns)} of speech in {time_text(summary.mean_ns)}"
        found.append(Number("real time", factor_text(summary.real_time_factor), hint))
    return found


def _call_numbers(trace: TraceRecord, tables: Mapping[str, pd.DataFrame]) -> list[Number]:
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
