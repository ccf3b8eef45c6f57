"""The flow of tensors between the rows of a trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays

_RANDOM = (
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "normal_",
    "uniform_",
    "bernoulli",
    "bernoulli_",
    "multinomial",
)


@dataclass(frozen=True, eq=False)
class Dataflow:
    """Which row reads what which other made.

    Attributes:
        source, target: rows of operations, by target; -1 for one that was not selected.
        state: whether the edge is that of a tensor which is kept and written in place.
        constant: of each operation, whether nothing that it is made of depends on an input of the run.
        joins: of each operation, whether it may be drawn together with others: not so inputs and constants.
        heavy: of each operation, whether it is a product, a reduction or the like.
        begin, end: of every row, which operations ran inside it, or it is: from begin to before end.
    """

    source: np.ndarray
    target: np.ndarray
    state: np.ndarray
    constant: np.ndarray
    joins: np.ndarray
    heavy: np.ndarray
    begin: np.ndarray
    end: np.ndarray


def build_dataflow(rows: CallArrays) -> Dataflow:
    """The wiring of rows that have operations; without them nothing is wired."""
    n, m = rows.calls, rows.ops
    begin = np.full(len(rows.parent), m)
    end = np.zeros(len(rows.parent), dtype=np.int64)
    begin[n : n + m], end[n : n + m] = np.arange(m), np.arange(1, m + 1)
    for level in reversed(rows.levels):
        inner = level[rows.parent[level] >= 0]
        np.minimum.at(begin, rows.parent[inner], begin[inner])
        np.maximum.at(end, rows.parent[inner], end[inner])
    flow = rows.trace.flow if m else None
    if flow is None:
        none = np.empty(0, dtype=np.int64)
        never = none.astype(bool)
        return Dataflow(none, none, never, never, never, never, begin, end)
    source, target = (flow.edges[name].to_numpy(dtype=np.int64) for name in ("source", "target"))
    by_target = np.argsort(target, kind="stable")
    source, target = source[by_target], target[by_target]
    state = flow.edges["state"].to_numpy(dtype=bool)[by_target]
    outside = (flow.ops["call"] < 0).to_numpy()
    given = (flow.ops["kind"] == "input").to_numpy(dtype=bool) | outside & flow.ops["name"].isin(_RANDOM).to_numpy()
    # What is made outside of all modules and handed to one is an input of it, however it was made.
    between = (source >= 0) & (target >= 0)
    handed = between & ~state & outside[source] & ~outside[target]
    given[source[handed]] = True
    varies = given.tolist()
    for one, two in zip(source.tolist(), target.tolist(), strict=True):  # a source stands before what reads it
        if two >= 0 and (one < 0 or varies[one]):
            varies[two] = True
    return Dataflow(
        np.where(source >= 0, source + n, -1),
        np.where(target >= 0, target + n, -1),
        state,
        ~np.array(varies, dtype=bool),
        (flow.ops["kind"] == "op").to_numpy(dtype=bool) & np.array(varies, dtype=bool),
        flow.ops["heavy"].to_numpy(dtype=bool),
        begin,
        end,
    )


def edges_inside(rows: CallArrays, wiring: Dataflow, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The flow inside a row between its children, as places among them; -1 for a source that is outside of the row.

    What stays inside one child is left out.
    """
    children = rows.children[rows.first[row] : rows.first[row] + rows.count[row]]
    begin, end = wiring.begin[children], wiring.end[children]
    there = np.flatnonzero(begin < end)
    low, high = np.searchsorted(wiring.target, [rows.calls + wiring.begin[row], rows.calls + wiring.end[row]])
    ends = []
    for ops in (wiring.source[low:high] - rows.calls, wiring.target[low:high] - rows.calls):
        place = np.searchsorted(begin[there], ops, side="right") - 1
        child = np.where(place >= 0, there[np.maximum(place, 0)], -1) if len(there) else np.full(len(ops), -1)
        ends.append(np.where((child >= 0) & (ops < end[np.maximum(child, 0)]), child, -1))
    one, two = ends
    between = (two >= 0) & (one != two)
    return one[between], two[between]
