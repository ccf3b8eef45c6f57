"""Layout of a chart in columns, so that it fits a page; rank of each box in its column."""

from __future__ import annotations

import math
from itertools import pairwise

from talkerviz.flowchart.model import Box, Graph, Group

# Heights in widths of a box: a box with the arrow above it, an operation, a group's heading.
_BOX_HEIGHT = 0.4
_OPERATION_HEIGHT = 0.25
_HEADING_HEIGHT = 0.15
_ASPECT = 1.5  # width of a chart in heights, as of a screen

Column = list[list[str]]
"""The ids of the boxes in each member of a column, top to bottom."""


def columns(graph: Graph) -> list[Column]:
    """Split consecutive members into columns of similar height: phases, or the members of a lone group.

    Inputs and outputs of the chart are in no column.
    """
    members = graph.members
    while len(members) == 1 and isinstance(members[0], Group):
        members = members[0].members
    # A group without boxes is in no column.
    members = tuple(member for member in members if ids_of(member))
    if any(isinstance(member, Group) for member in members):
        members = tuple(member for member in members if isinstance(member, Group) or member.kind != "input")
    heights = [_height(member) for member in members]
    count = max(1, round(math.sqrt(sum(heights) * _ASPECT)))
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
    """Map each box to the number of its column."""
    return {id: number for number, column in enumerate(parts) for ids in column for id in ids}


def ranks(graph: Graph, parts: list[Column]) -> dict[str, int]:
    """Return the least rank of each box in its column: below all boxes there that it has arrows from."""
    place = {box.id: place for place, box in enumerate(graph.boxes)}
    column_of = numbers_of(parts)
    pairs = [(edge.source, edge.target) for edge in graph.edges]
    pairs += [(above[-1], below[0]) for column in parts for above, below in pairwise(column)]
    found = dict.fromkeys(place, 0)
    # In run order a box's rank is final once all earlier ones are; arrows against that order do not count.
    for source, target in sorted(pairs, key=lambda pair: place[pair[0]]):
        if column_of.get(source) == column_of.get(target) and place[source] < place[target]:
            found[target] = max(found[target], found[source] + 1)
    # A box in no column is above its targets and below its sources.
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
    """List the ids of the boxes in a member."""
    return [member.id] if isinstance(member, Box) else [id for inner in member.members for id in ids_of(inner)]
