"""The colours of self time, cool to hot, and what they mean."""

from __future__ import annotations

from talkerviz.render.text import time_text

HEAT_FILLS = ("#eef2f7", "#fde9c4", "#fbc77d", "#f08a4b", "#c8402f")
HEAT_INKS = ("#1f2933", "#1f2933", "#1f2933", "#1f2933", "#ffffff")
BORDER = "#7b8794"


def heat_legend(floors: tuple[float, ...]) -> list[str]:
    """What each heat stands for, coolest first; empty where nothing was measured."""
    if not floors:
        return []
    return [f"< {time_text(floors[0])}", *(f"≥ {time_text(floor)}" for floor in floors)]
