"""Arrows between drawn boxes, from what lies between the rows that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays
from talkerviz.flowchart.dataflow import Dataflow
from talkerviz.flowchart.expansion import VisibleNode, every
from talkerviz.flowchart.model import Edge

_WORDS = ("", "next", "next frame")

BEFORE, AFTER = "before", "after"
"""The ids of the boxes for what was not selected: what is drawn read of it, and what read of what is drawn."""


def build_edges(
    rows: CallArrays, wiring: Dataflow, top: Sequence[VisibleNode], ids: Mapping[int, str], flow: bool
) -> tuple[Edge, ...]:
    """The arrows between the closed boxes of a drawing.

    What a box hands to itself is inside it and not drawn, but for what one turn or frame leaves for a later one: the
    state of a cell, the cache of an attention.

    Args:
        rows: what the boxes stand for.
        wiring: the flow between the rows.
        top: the drawing.
        ids: by `id` of each thing drawn, the id of its box.
        flow: whether arrows are the flow of tensors; else they go from each box to the one that is called next.
    """
    closed = [drawn for drawn in every(top) if drawn.members is None]
    box = np.full(len(rows.parent), -1)
    for number, drawn in enumerate(closed):
        box[drawn.fold.rows] = number
    if flow:
        box = rows.handed_down(box)
        source, target, state = wiring.source, wiring.target, wiring.state
    else:
        own = np.flatnonzero(box >= 0)
        source, target, state = own[:-1], own[1:], np.zeros(max(0, len(own) - 1), dtype=bool)
    one, two = np.where(source >= 0, box[source], len(closed)), np.where(target >= 0, box[target], len(closed) + 1)
    there = (one >= 0) & (two >= 0)
    source, target, state, one, two = (values[there] for values in (source, target, state, one, two))
    carried = _carried(rows, top, source, target)
    drawn = (one != two) | (carried > 0)
    state, one, two, carried = (values[drawn] for values in (state, one, two, carried))
    boxes = len(closed) + 2
    keys = (one * boxes + two) * len(_WORDS) + carried
    unique, which, count = np.unique(keys, return_inverse=True, return_counts=True)
    between, word_of = np.divmod(unique, len(_WORDS))
    arrows = zip(*(ends.tolist() for ends in np.divmod(between, boxes)), word_of.tolist(), strict=True)
    # An arrow is that of a kept state where nothing else goes the same way.
    only_state = np.ones(len(unique), dtype=bool)
    only_state[which[~state]] = False
    names = [ids[id(drawn)] for drawn in closed] + [BEFORE, AFTER]
    return tuple(
        Edge(names[a], names[b], _WORDS[word], bool(kept), int(times))
        for (a, b, word), kept, times in zip(arrows, only_state, count, strict=True)
    )


def _carried(rows: CallArrays, top: Sequence[VisibleNode], source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What lies between the two ends of each edge: the place of a word, 0 for nothing."""
    known = (source >= 0) & (target >= 0)
    one, two = rows.frame[source], rows.frame[target]
    # No frame hands on what comes from outside: it is there for all of them.
    between_frames = known & (one >= 0) & (two >= 0) & (one != two) & ~rows.given[source]
    carried = np.where(between_frames, _WORDS.index("next frame"), 0)
    # Phases repeat by frames, and these have been told apart.
    level = [member for drawn in top for member in drawn.members or () if _runs_apart(member)]
    while level and len(source):
        group, run = np.full(len(rows.parent), -1), np.full(len(rows.parent), -1)
        for number, drawn in enumerate(level):
            group[drawn.fold.rows] = number
            run[drawn.fold.rows] = drawn.fold.rows if drawn.fold.turns is None else drawn.fold.turns
        group, run = rows.handed_down(group), rows.handed_down(run)
        same = known & (group[source] == group[target]) & (group[source] >= 0)
        carried[same & (run[source] != run[target]) & (carried == 0)] = _WORDS.index("next")
        level = [member for drawn in level for member in drawn.members or () if _runs_apart(member)]
    return carried


def _runs_apart(drawn: VisibleNode) -> bool:
    """Whether one run of what is drawn is told from another: a closed module has calls, operations are only joined."""
    return drawn.members is not None or drawn.fold.kind == "module"
