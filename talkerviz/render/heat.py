"""The colours of time, cool to hot, and what they mean: of self time, or of a share of all time."""

from __future__ import annotations

import bisect
from itertools import pairwise

from talkerviz.render.text import time_text

HEAT_FILLS = ("#eef2f7", "#fde9c4", "#fbc77d", "#f08a4b", "#c8402f")
HEAT_INKS = ("#1f2933", "#1f2933", "#1f2933", "#1f2933", "#ffffff")
BORDER = "#7b8794"


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
