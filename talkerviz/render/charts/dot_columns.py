"""Where boxes stand in a chart: which parts side by side, so that it fits a page and not a scroll, and how far down."""

from __future__ import annotations

import math
from itertools import pairwise

from talkerviz.flowchart.model import Box, Graph, Group

# Of a box with the arrow above it, against its width with the gap beside it.
_BOX_HEIGHT = 0.4
_OPERATION_HEIGHT = 0.25
_HEADING_HEIGHT = 0.15
_WIDE = 1.5

Column = list[list[str]]
"""The ids of the boxes in each member of a column, top to bottom."""


def columns(graph: Graph) -> list[Column]:
    """Members that follow each other, cut into columns of about one height: the phases, or what a lone group holds.

    What comes from outside of them, and goes there, stands in none.
    """
    members = graph.members
    while len(members) == 1 and isinstance(members[0], Group):
        members = members[0].members
    # A group with no boxes in it stands nowhere.
    members = tuple(member for member in members if ids_of(member))
    if any(isinstance(member, Group) for member in members):
        members = tuple(member for member in members if isinstance(member, Group) or member.kind != "input")
    heights = [_height(member) for member in members]
    count = max(1, round(math.sqrt(sum(heights) * _WIDE)))
    most = max(max(heights, default=0), sum(heights) / count) * 1.1
    found: list[Column] = []
    room = 0.0
    for member, height in zip(members, heights, strict=True):
        if height > room:
            found.append([])
            room = most
        found[-1].append(ids_of(member))
        room -= height
    return found


def numbers_of(parts: list[Column]) -> dict[str, int]:
    """Which column each box stands in."""
    return {id: number for number, column in enumerate(parts) for ids in column for id in ids}


def ranks(graph: Graph, parts: list[Column]) -> dict[str, int]:
    """How far down each box stands in its column at least: below all in it that arrows lead from to it."""
    place = {box.id: place for place, box in enumerate(graph.boxes)}
    column_of = numbers_of(parts)
    pairs = [(edge.source, edge.target) for edge in graph.edges]
    pairs += [(above[-1], below[0]) for column in parts for above, below in pairwise(column)]
    found = dict.fromkeys(place, 0)
    # A box is final once all before it in the order of the run are: arrows against that order do not count.
    for source, target in sorted(pairs, key=lambda pair: place[pair[0]]):
        if column_of.get(source) == column_of.get(target) and place[source] < place[target]:
            found[target] = max(found[target], found[source] + 1)
    # What stands in no column is above all that it leads to, and below all that leads to it.
    for source, target in pairs:
        if source not in column_of:
            found[source] = min(found[source], found[target] - 1)
        elif target not in column_of:
            found[target] = max(found[target], found[source] + 1)
    return found


def _height(member: Box | Group) -> float:
    if isinstance(member, Group):
        return _HEADING_HEIGHT + sum(map(_height, member.members))
    return _OPERATION_HEIGHT if member.kind == "operation" else _BOX_HEIGHT


def ids_of(member: Box | Group) -> list[str]:
    """Of the boxes in it."""
    return [member.id] if isinstance(member, Box) else [id for inner in member.members for id in ids_of(inner)]
