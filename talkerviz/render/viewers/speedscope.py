"""Speedscope JSON, for flame graphs at speedscope.app: a profile per phase, rank, thread and run.

The format: https://www.speedscope.app/file-format-schema.json. By convention a `.speedscope.json` file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from talkerviz.flowchart.model import phase_title
from talkerviz.render.viewers.common import call_name, check_timed, compact, joined
from talkerviz.trace import TraceRecord

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def render_speedscope(trace: TraceRecord) -> bytes:
    """Write the host calls of each phase, in nanoseconds since the recording began.

    Raises:
        RenderError: the trace has no times.
    """
    check_timed(trace, "speedscope")
    return joined(_pieces(trace))


def _pieces(trace: TraceRecord) -> Iterator[str]:
    calls = trace.calls[trace.calls["host_ns"].notna()]
    modules = calls.groupby(["path", "class"], observed=True, sort=False)
    # The module path is the frame's file, which speedscope shows beside the name.
    frames = [{"name": call_name(path, kind), "file": path} for path, kind in modules.groups]
    several = [name for name in ("rank", "thread", "run") if calls[name].nunique() > 1]
    profiles = calls.assign(module=modules.ngroup()).groupby(
        ["phase", *several], dropna=False, observed=True, sort=False
    )
    head = {
        "$schema": _SCHEMA,
        "exporter": "talkerviz",
        "name": str(trace.facts.get("model", "talkerviz")),
        # The profile shown first is that with most of the time.
        "activeProfileIndex": int(profiles["host_self_ns"].sum().to_numpy().argmax()),
        "shared": {"frames": frames},
    }
    yield f'{compact(head)[:-1]},"profiles":['
    comma = "\n"
    for of, calls_of in profiles:
        name = " · ".join(
            [phase_title(of[0]), *(f"{one} {number}" for one, number in zip(several, of[1:], strict=True))]
        )
        start = calls_of["host_start_ns"].to_numpy(dtype=np.int64)
        end = start + calls_of["host_ns"].to_numpy(dtype=np.int64)
        yield f'{comma}{{"type":"evented","name":{compact(name)},"unit":"nanoseconds",'
        yield f'"startValue":{start.min()},"endValue":{end.max()},"events":['
        comma = ""
        for event in _events(calls_of["depth"].tolist(), calls_of["module"].tolist(), start.tolist(), end.tolist()):
            yield f"{comma}\n{event}"
            comma = ","
        yield "\n]}"
        comma = ",\n"
    yield "\n]}\n"


def _events(depths: list[int], frames: list[int], starts: list[int], ends: list[int]) -> Iterator[str]:
    """Yield an open and a close event per call, in time order; calls come in order of their start."""
    inside: list[tuple[int, int, int]] = []  # depth, frame and end of open calls, outermost first
    now = starts[0]

    def close() -> str:
        nonlocal now
        _, frame, end = inside.pop()
        now = max(now, end)
        return f'{{"type":"C","frame":{frame},"at":{now}}}'

    for depth, frame, start, end in zip(depths, frames, starts, ends, strict=True):
        # A caller is less deep and not over; with callers left out, an ended call may have a caller's depth.
        while inside and (inside[-1][0] >= depth or inside[-1][2] < start):
            yield close()
        now = max(now, start)
        inside.append((depth, frame, end))
        yield f'{{"type":"O","frame":{frame},"at":{now}}}'
    while inside:
        yield close()
