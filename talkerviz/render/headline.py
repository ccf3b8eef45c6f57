"""How fast frames came, in a line."""

from __future__ import annotations

from talkerviz.render.text import factor_text, time_text
from talkerviz.trace.counted import counted
from talkerviz.trace.frames import FrameSummary


def headline(summary: FrameSummary) -> str:
    """Time to the first frame, what further ones took, and what that is for speech; without what is not known."""
    frames = counted(summary.frames, "frame")
    parts = [f"{frames} of {summary.runs:,} runs" if summary.runs > 1 else frames]
    if summary.first_ns is not None:
        parts[0] += f": the first after {time_text(summary.first_ns)}"
    if summary.mean_ns is not None:
        spread = {"p50": summary.p50_ns, "p95": summary.p95_ns, "p99": summary.p99_ns, "jitter": summary.jitter_ns}
        known = ", ".join(f"{name} {time_text(ns)}" for name, ns in spread.items() if ns is not None)
        further = f"{time_text(summary.mean_ns)} each ({known})"
        parts[0] += f", then {further}" if summary.first_ns is not None else f": {further}"
    if summary.real_time_factor is not None:
        parts += [f"{factor_text(summary.real_time_factor)} real time, {summary.codes_per_second:,.1f} codes/s"]
    return "; ".join(parts)
