"""The raw log of a thread, and how it becomes rows.

While a run goes on each call appends six whole numbers to a flat list: module, inputs and time as it begins;
-1 - module, outputs and time as it ends. Everything else (nesting, parents, self time, phases) is worked out here,
after the run, on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.record.phases import Mark
from talkerviz.record.tensors import NO_TENSORS

_WIDTH = 3  # numbers an event


@dataclass
class ThreadLog:
    """What one thread did.

    Attributes:
        events: three numbers an event, see the module's text; a time is nanoseconds, or -1 without a clock.
        marks: (how many numbers `events` held, the mark that began there).
        errors: position in `events` of the end of a call that raised -> the exception's class name.
    """

    events: list[int] = field(default_factory=list)
    marks: list[tuple[int, Mark]] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


def thread_rows(log: ThreadLog, origin_ns: int, timed: bool) -> dict[str, Any]:
    """One thread's log -> columns of its calls, in the order in which they began.

    `call` and `parent` count within the thread (parent -1 at the top). `module`, `inputs` and `outputs` are the numbers
    that the recorder gave. Calls still open at the end of the log (a run stopped from outside) are closed at its last
    event.
    """
    events = np.array(log.events, dtype=np.int64).reshape(-1, _WIDTH)
    begins = events[:, 0] >= 0
    level = np.cumsum(np.where(begins, 1, -1))
    level[~begins] += 1  # the end of a call stands on the level of its beginning
    depth = level - 1

    # Sorted by level, keeping time's order within it, each beginning is followed by its own end.
    order = np.argsort(depth, kind="stable")
    sorted_begins = begins[order]
    begin_at = order[sorted_begins]
    end_at = np.full(len(begin_at), len(events))
    following = np.flatnonzero(sorted_begins) + 1
    closed = following < len(order)
    closed[closed] = ~sorted_begins[following[closed]]
    end_at[closed] = order[following[closed]]

    in_time = np.argsort(begin_at)
    begin_at, end_at, closed = begin_at[in_time], end_at[in_time], closed[in_time]
    calls = len(begin_at)
    depth = depth[begin_at]
    parent = _parents(depth)

    start = events[begin_at, 2]
    end = np.full(calls, events[-1, 2] if len(events) else 0)
    end[closed] = events[end_at[closed], 2]
    outputs = np.full(calls, NO_TENSORS)
    outputs[closed] = events[end_at[closed], 1]
    errors = [None if number >= len(events) else log.errors.get(int(number) * _WIDTH) for number in end_at]

    host = end - start
    inside = np.bincount(parent[parent >= 0], weights=host[parent >= 0], minlength=calls).astype(np.int64)
    marks = _marks_of(log, begin_at)
    return {
        "call": np.arange(calls),
        "parent": parent,
        "depth": depth.astype(np.int32),
        "module": events[begin_at, 0],
        "inputs": events[begin_at, 1],
        "outputs": outputs,
        "phase": [mark.phase for mark in marks],
        "frame": pd.array([mark.frame for mark in marks], dtype="Int64"),
        "step": pd.array([mark.step for mark in marks], dtype="Int64"),
        "host_start_ns": _time(start - origin_ns, timed),
        "host_ns": _time(host, timed),
        "host_self_ns": _time(host - inside, timed),
        "error": errors,
    }


def _parents(depth: np.ndarray) -> np.ndarray:
    """The row of the last call before it that is one level up; -1 at the top."""
    parent = np.full(len(depth), -1)
    rows = np.arange(len(depth))
    for level in range(1, int(depth.max(initial=0)) + 1):
        above, here = rows[depth == level - 1], rows[depth == level]
        parent[here] = above[np.searchsorted(above, here) - 1]
    return parent


def _marks_of(log: ThreadLog, begin_at: np.ndarray) -> list[Mark]:
    positions = np.array([position for position, _ in log.marks])
    marks = [mark for _, mark in log.marks]
    return [marks[index] for index in np.searchsorted(positions, begin_at * _WIDTH, side="right") - 1]


def _time(values: np.ndarray, timed: bool) -> pd.api.extensions.ExtensionArray:
    return pd.array(values if timed else [pd.NA] * len(values), dtype="Int64")
