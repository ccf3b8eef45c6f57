"""What of a trace is to be drawn, and how far it is to be opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Edges = Literal["flow", "calls"]
EDGES: tuple[Edges, ...] = get_args(Edges)
MOST_BOXES = 59
"""What a picture is legible with."""


@dataclass(frozen=True)
class View:
    """How a trace is drawn.

    Attributes:
        depth: open modules at most this deep: 0 shows the phases' own calls alone; None opens as much as fits.
        open: patterns of paths, as in a shell, whose modules are opened whatever their depth.
        close: patterns of paths whose modules stay closed, whatever is inside.
        max_nodes: no more boxes than this, unless `open` asks for more; by default `MOST_BOXES`. What does not fit
            stays closed, is folded although it differs inside, and at last is one box that says how much it is.
        edges: `flow` for where tensors went, `calls` for the order of calls; None for flow where it was recorded.
        fold: whether what repeats is drawn once.
    """

    depth: int | None = None
    open: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    max_nodes: int | None = None
    edges: Edges | None = None
    fold: bool = True

    @property
    def most_boxes(self) -> int:
        """How many boxes there may be."""
        return MOST_BOXES if self.max_nodes is None else self.max_nodes
