"""Traces whose times fit together, for what draws time lines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
from hypothesis import strategies as st
from sample_trace import call, make_trace, sample_trace

from talkerviz.api import Trace
from talkerviz.trace.flow import Flow, edges_frame, ops_frame

Tree = tuple[int, list[Any]]
"""A call: nanoseconds before each call that it makes and after the last, and those calls."""

trees: st.SearchStrategy[Tree] = st.recursive(
    st.integers(1, 5_000).map(lambda gap: (gap, [])),
    lambda inner: st.tuples(st.integers(1, 5_000), st.lists(inner, max_size=3)),
    max_leaves=12,
)


def trace_of(trees: list[Tree], names: list[str], threads: int = 1) -> Trace:
    """Return a trace of such calls, one tree after the other, in turns on some threads, in two phases and frames."""
    rows: list[dict[str, Any]] = []

    def add(tree: Tree, parent: int | None, depth: int, start: int, **more: Any) -> int:
        gap, inner = tree
        name = names[len(rows) % len(names)]
        row = call(len(rows), parent, depth, name, name, 0, gap * (len(inner) + 1), host_start_ns=start, **more)
        rows.append(row)
        now = start + gap
        for one in inner:
            now = add(one, row["call"], depth + 1, now, **more) + gap
        row["host_ns"] = now - start
        return now

    now = 1
    for place, tree in enumerate(trees):
        which = {"phase": ("prefill", None)[place % 2], "frame": place // 2 if place > 1 else None}
        now = add(tree, None, 0, now, thread=place % threads, **which) + 7
    return make_trace(rows)


def timeline_trace() -> Trace:
    """Return the sample trace with starts that fit its times, figures of a device, and the flow of tensors."""
    trace = sample_trace()
    starts = [0, 1_000, 1_300, 1_700, 3_400, 3_900, 5_500, 5_900, 7_701, 10_100, 11_000]
    missing = [pd.NA] * 2
    calls = trace.calls.assign(
        host_start_ns=pd.array(starts, dtype="Int64"),
        # Of calls 5 and 6 the device knows nothing; call 7 outlasts its caller there, as on another stream.
        device_start_ns=pd.array(
            [5_000, 7_000, 7_600, 8_400, 11_800, *missing, 15_500, 30_000, 40_000, 41_000], dtype="Int64"
        ),
        device_ns=pd.array([900, 9_001, 2_500, 1_300, 2_000, *missing, 900, 500, 4_000, 300], "Int64"),
        flops=pd.array([pd.NA, 12_345_678_901, *[32] * 9], "Int64"),
        bytes_read=pd.array([0, *[64] * 10], "Int64"),
    )
    # The embedding and the first projection feed the head, which two more operations of the net's own read.
    ops = ops_frame(
        {
            "call": [0, 3, 8, 1, 10],
            "after": [0, 3, 8, 8, 10],
            "phase": ["setup", *["decode"] * 4],
            "frame": [None, 0, 0, 0, 1],
            "step": [None] * 5,
            "name": ["embedding", "linear", "linear", "add", "linear"],
            "kind": ["op"] * 5,
            "heavy": [True] * 5,
            "returned": [True] * 5,
            "inputs": [()] * 5,
            "outputs": [()] * 5,
        }
    )
    edges = edges_frame([0, 1, 2, 2, 1], [2, 2, 3, 4, 4], [False, False, False, False, True])
    return replace(trace, calls=calls, flow=Flow(ops, edges))
