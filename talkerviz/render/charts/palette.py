"""Colours of charts, shared by all formats and legible on light and dark pages."""

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
"""Colour of text on every fill but the hottest."""
FAILED = "#c8102e"
"""Border of calls that raised an exception."""

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
"""Looks of boxes, by name."""

_GROUP_BORDERS = {"group": _SOFT_BORDER, "repeat": _EDGES["carried"], **_CHANGED_EDGES}

# Alternating by depth. A changed group keeps a pale fill, which does not drown its boxes.
GROUP_LOOKS = {
    f"{what}{depth}": Look(fill, border)
    for what, border in _GROUP_BORDERS.items()
    for depth, fill in enumerate(("#f3f6fa", "#ffffff"))
}
"""Looks of groups, by name."""


def box_look(box: Box, diff: bool) -> str:
    """Choose a box's look; in a chart of two runs the fill is the change, not the time."""
    if box.change:
        return box.change
    if box.kind in LOOKS:
        return box.kind
    heat = None if diff else share_heat(box.share)
    return "plain" if heat is None else f"heat{heat}"


def group_look(box: Box, depth: int) -> str:
    """Choose a group's look, by its depth."""
    return f"{box.change or ('repeat' if box.kind == 'repeat' else 'group')}{depth % 2}"


def edge_colour(edge: Edge) -> str:
    """Return the colour of an arrow."""
    return _CHANGED_EDGES[edge.change] if edge.change else style_colour(edge_style(edge))


def style_colour(style: EdgeStyle) -> str:
    """Return the colour of an arrow style."""
    return _EDGES[style]


def heat_legend(floors: tuple[float, ...]) -> list[str]:
    """Describe each heat, coolest first; empty without times."""
    if not floors:
        return []
    return [f"< {time_text(floors[0])}", *(f"≥ {time_text(floor)}" for floor in floors)]


# Shares of the time at which the next hotter colour begins; fixed, so that charts can be compared.
_SHARE_FLOORS = (0.01, 0.03, 0.10, 0.30)


def share_heat(share: float | None) -> int | None:
    """Return the heat of a share of the time, 0 (cool) to 4 (hot); None if it was not measured."""
    return None if share is None else bisect.bisect_right(_SHARE_FLOORS, share)


def share_legend() -> list[str]:
    """Describe each heat of `share_heat`, coolest first."""
    percents = [f"{floor:.0%}".replace("%", " %") for floor in _SHARE_FLOORS]
    between = [f"{low.removesuffix(' %')}–{high}" for low, high in pairwise(percents)]
    return [f"< {percents[0]}", *between, f"≥ {percents[-1]}"]
