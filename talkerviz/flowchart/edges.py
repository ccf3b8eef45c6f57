"""Arrows between boxes, from the edges between their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays
from talkerviz.flowchart.dataflow import Dataflow
from talkerviz.flowchart.expansion import VisibleNode, walk
from talkerviz.flowchart.model import Edge

_WORDS = ("", "next", "next frame")

BEFORE, AFTER = "before", "after"
"""Ids of the boxes for operations outside of a selection: producers before it, and consumers after it."""


def build_edges(
    rows: CallArrays, dataflow: Dataflow, top: Sequence[VisibleNode], ids: Mapping[int, str], flow: bool
) -> tuple[Edge, ...]:
    """Build the arrows between collapsed boxes.

    Edges inside a box are not node, except those to its next repetition or frame: the state of a cell, the KV cache of
    an attention.

    Args:
        rows: rows of the trace.
        dataflow: flow between the rows.
        top: visible nodes at the top.
        ids: Python `id` of a visible node -> id of its box.
        flow: whether arrows are the flow of tensors; else they lead from each box to the next one called.
    """
    closed = [node for node in walk(top) if node.members is None]
    box = np.full(len(rows.parent), -1)
    for number, node in enumerate(closed):
        box[node.fold.rows] = number
    if flow:
        box = rows.inherited(box)
        source, target, state = dataflow.source, dataflow.target, dataflow.state
    else:
        own = np.flatnonzero(box >= 0)
        source, target, state = own[:-1], own[1:], np.zeros(max(0, len(own) - 1), dtype=bool)
    one, two = np.where(source >= 0, box[source], len(closed)), np.where(target >= 0, box[target], len(closed) + 1)
    has_boxes = (one >= 0) & (two >= 0)
    source, target, state, one, two = (values[has_boxes] for values in (source, target, state, one, two))
    carried = _carried(rows, top, source, target)
    kept = (one != two) | (carried > 0)
    state, one, two, carried = (values[kept] for values in (state, one, two, carried))
    boxes = len(closed) + 2
    keys = (one * boxes + two) * len(_WORDS) + carried
    unique, which, count = np.unique(keys, return_inverse=True, return_counts=True)
    between, word_of = np.divmod(unique, len(_WORDS))
    arrows = zip(*(ends.tolist() for ends in np.divmod(between, boxes)), word_of.tolist(), strict=True)
    # An arrow is a state arrow only if all its edges are.
    only_state = np.ones(len(unique), dtype=bool)
    only_state[which[~state]] = False
    names = [ids[id(node)] for node in closed] + [BEFORE, AFTER]
    return tuple(
        Edge(names[a], names[b], _WORDS[word], bool(is_state), int(times))
        for (a, b, word), is_state, times in zip(arrows, only_state, count, strict=True)
    )


def _carried(rows: CallArrays, top: Sequence[VisibleNode], source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return what each edge carries over, as an index of `_WORDS`: nothing, the next repetition, the next frame."""
    known = (source >= 0) & (target >= 0)
    one, two = rows.frame[source], rows.frame[target]
    # An input of the run is available to all frames, and is carried by none.
    between_frames = known & (one >= 0) & (two >= 0) & (one != two) & ~rows.is_input[source]
    carried = np.where(between_frames, _WORDS.index("next frame"), 0)
    # Repetitions of phases are frames, which are done; groups below are left.
    level = [member for node in top for member in node.members or () if _runs_apart(member)]
    while level and len(source):
        group, run = np.full(len(rows.parent), -1), np.full(len(rows.parent), -1)
        for number, node in enumerate(level):
            group[node.fold.rows] = number
            run[node.fold.rows] = node.fold.rows if node.fold.turns is None else node.fold.turns
        group, run = rows.inherited(group), rows.inherited(run)
        same = known & (group[source] == group[target]) & (group[source] >= 0)
        carried[same & (run[source] != run[target]) & (carried == 0)] = _WORDS.index("next")
        level = [member for node in level for member in node.members or () if _runs_apart(member)]
    return carried


def _runs_apart(node: VisibleNode) -> bool:
    """Return whether the repetitions of a node are distinct: those of modules and groups are, fused operations' not."""
    return node.members is not None or node.fold.kind == "module"
