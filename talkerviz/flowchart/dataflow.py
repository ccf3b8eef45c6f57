"""Flow of tensors between rows of calls and operations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays

# Names of torch's random operations: a sample drawn outside of modules is an input of the run.
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
    """Edges between operations, and properties of operations.

    Attributes:
        source, target: rows of each edge's operations, sorted by target; -1 for an operation that was not selected.
        state: mask of edges of tensors that are kept and written in place.
        constant: mask of operations that do not depend on an input of the run.
        joins: mask of operations that may be fused into one box; not inputs and constants.
        heavy: mask of operations such as products and reductions.
        begin, end: for each row the range [begin, end) of operations that ran inside it, or that it is.
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
    """Build the flow between rows; without operations it has no edges."""
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
    is_input = (flow.ops["kind"] == "input").to_numpy(dtype=bool) | outside & flow.ops["name"].isin(_RANDOM).to_numpy()
    # A tensor computed outside of all modules and passed to one is an input.
    selected = (source >= 0) & (target >= 0)
    enters = selected & ~state & outside[source] & ~outside[target]
    is_input[source[enters]] = True
    varies = is_input.tolist()
    for maker, reader in zip(source.tolist(), target.tolist(), strict=True):  # makers precede readers
        if reader >= 0 and (maker < 0 or varies[maker]):
            varies[reader] = True
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
    """Return the edges between the children of a row, as indices among the children.

    Edges inside a child are left out. The source is -1 if it is outside of the row.
    """
    children = rows.children[rows.first[row] : rows.first[row] + rows.count[row]]
    begin, end = wiring.begin[children], wiring.end[children]
    with_ops = np.flatnonzero(begin < end)
    low, high = np.searchsorted(wiring.target, [rows.calls + wiring.begin[row], rows.calls + wiring.end[row]])
    ends = []
    for ops in (wiring.source[low:high] - rows.calls, wiring.target[low:high] - rows.calls):
        index = np.searchsorted(begin[with_ops], ops, side="right") - 1
        child = np.where(index >= 0, with_ops[np.maximum(index, 0)], -1) if len(with_ops) else np.full(len(ops), -1)
        ends.append(np.where((child >= 0) & (ops < end[np.maximum(child, 0)]), child, -1))
    sources, targets = ends
    between = (targets >= 0) & (sources != targets)
    return sources[between], targets[between]
