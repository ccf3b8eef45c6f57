"""Collapsed stacks, for flamegraph.pl, inferno and speedscope. By convention a `.txt` or `.folded` file.

The format: https://github.com/brendangregg/FlameGraph, a line `outermost;inner;innermost 123` for each different stack.
"""

from __future__ import annotations

import numpy as np

from talkerviz.flowchart.model import phase_title
from talkerviz.render.escape import one_line
from talkerviz.render.viewers.common import call_name, check_timed
from talkerviz.trace import TraceRecord
from talkerviz.trace.call_tree import parent_rows


def render_collapsed_stacks(trace: TraceRecord) -> bytes:
    """Write the host microseconds spent in each stack of calls, with phases at the bottom.

    Time in calls that were not selected counts for their caller. Stacks below half a microsecond have no line.
    Semicolons in names, which the format cannot hold, become commas.

    Raises:
        RenderError: the trace has no times.
    """
    check_timed(trace, "flamegraph")
    calls = trace.calls[trace.calls["host_ns"].notna()]
    own = calls["host_ns"].to_numpy(dtype=np.int64)
    parent = parent_rows(calls)
    inside = np.zeros(len(calls), dtype=np.int64)
    np.add.at(inside, parent[parent >= 0], own[parent >= 0])
    several = [name for name in ("rank", "thread") if calls[name].nunique() > 1]
    places = calls[several].to_numpy().tolist()

    stacks: dict[tuple[int, str], int] = {}  # number of the stack around it and innermost name -> number
    times: list[int] = []
    stack_of: list[int] = []

    def stack(around: int, name: str) -> int:
        number = stacks.setdefault((around, name), len(times))
        if number == len(times):
            times.append(0)
        return number

    names = {
        pair: _name(call_name(*pair))
        for pair in calls[["path", "class"]].drop_duplicates().itertuples(index=False, name=None)
    }
    columns = (calls[name].tolist() for name in ("phase", "path", "class"))
    for phase, path, kind, of, above, time in zip(
        *columns, places, parent.tolist(), (own - inside).tolist(), strict=True
    ):
        place = "".join(f" {name} {number}" for name, number in zip(several, of, strict=True))
        around = stack_of[above] if above >= 0 else stack(-1, _name(phase_title(phase) + place))
        number = stack(around, names[path, kind])
        times[number] += time
        stack_of.append(number)

    texts: list[str] = []
    lines: list[str] = []
    for (around, name), time in zip(stacks, times, strict=True):
        texts.append(f"{texts[around]};{name}" if around >= 0 else name)
        if (micros := round(time / 1000)) > 0:
            lines.append(f"{texts[-1]} {micros}\n")
    return "".join(lines).encode(errors="replace")


def _name(text: str) -> str:
    return one_line(text).replace(";", ",").strip()
