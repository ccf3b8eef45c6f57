"""The colours of nested charts, in every format the same, to be read on a light page and on a dark one."""

from __future__ import annotations

import bisect
from itertools import pairwise
from typing import NamedTuple

from talkerviz.flowchart.model import Box, Edge
from talkerviz.render.charts.label_text import EdgeStyle, edge_style
from talkerviz.render.text import time_text

HEAT_FILLS = ("#eef2f7", "#fde9c4", "#fbc77d", "#f08a4b", "#c8402f")
HEAT_INKS = ("#1f2933", "#1f2933", "#1f2933", "#1f2933", "#ffffff")
BORDER = "#7b8794"

INK = "#1f2933"
"""Text on every fill but the hottest."""
FAILED = "#c8102e"
"""The border of what raised."""

_SOFT_BORDER = "#b8c4d0"
_EDGES: dict[EdgeStyle, str] = {"flow": "#6b7a8a", "carried": "#2f7fc1", "state": "#8a5cc2"}
_CHANGED_EDGES: dict[str, str] = {"added": "#2e8b57", "removed": "#d1383d", "changed": "#c58a00"}


class Look(NamedTuple):
    """Colours of a box or of a group."""

    fill: str
    border: str
    ink: str = INK


LOOKS = {
    **{f"heat{heat}": Look(HEAT_FILLS[heat], BORDER, HEAT_INKS[heat]) for heat in range(len(HEAT_FILLS))},
    "plain": Look("#ffffff", BORDER),
    "more": Look("#ffffff", BORDER),
    "operation": Look("#e4e9f0", _SOFT_BORDER),
    "input": Look("#e3f1ec", BORDER),
    "added": Look("#d5f0dc", _CHANGED_EDGES["added"]),
    "removed": Look("#fbdcdc", _CHANGED_EDGES["removed"]),
    "changed": Look("#fdeec2", _CHANGED_EDGES["changed"]),
}
"""Of boxes, by name."""

_GROUP_BORDERS = {"group": _SOFT_BORDER, "repeat": _EDGES["carried"], **_CHANGED_EDGES}

# By their depth in turns. A fill that changed would drown what stands in the group.
GROUP_LOOKS = {
    f"{what}{depth}": Look(fill, border)
    for what, border in _GROUP_BORDERS.items()
    for depth, fill in enumerate(("#f3f6fa", "#ffffff"))
}
"""Of groups, by name."""


def box_look(box: Box, diff: bool) -> str:
    """A box's look. In a drawing of two runs the fill says what changed, and nothing of time."""
    if box.change:
        return box.change
    if box.kind in LOOKS:
        return box.kind
    heat = None if diff else share_heat(box.share)
    return "plain" if heat is None else f"heat{heat}"


def group_look(box: Box, depth: int) -> str:
    """A group's look, by how many groups it stands in."""
    return f"{box.change or ('repeat' if box.kind == 'repeat' else 'group')}{depth % 2}"


def edge_colour(edge: Edge) -> str:
    """An arrow's colour."""
    return _CHANGED_EDGES[edge.change] if edge.change else style_colour(edge_style(edge))


def style_colour(style: EdgeStyle) -> str:
    """The colour of arrows that did not change."""
    return _EDGES[style]


def heat_legend(floors: tuple[float, ...]) -> list[str]:
    """What each heat stands for, coolest first; empty where nothing was measured."""
    if not floors:
        return []
    return [f"< {time_text(floors[0])}", *(f"≥ {time_text(floor)}" for floor in floors)]


# Shares of the time from which on a colour is the next hotter one; the same in every chart, so that two compare.
_SHARE_FLOORS = (0.01, 0.03, 0.10, 0.30)


def share_heat(share: float | None) -> int | None:
    """The heat of a part of the time, 0 (cool) to 4 (hot); None where it was not measured."""
    return None if share is None else bisect.bisect_right(_SHARE_FLOORS, share)


def share_legend() -> list[str]:
    """What each heat of `share_heat` stands for, coolest first."""
    percents = [f"{floor:.0%}".replace("%", " %") for floor in _SHARE_FLOORS]
    between = [f"{low.removesuffix(' %')}–{high}" for low, high in pairwise(percents)]
    return [f"< {percents[0]}", *between, f"≥ {percents[-1]}"]
