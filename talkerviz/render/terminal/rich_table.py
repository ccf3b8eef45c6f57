"""What all tables in a terminal look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.table import Table


def plain_table(title: str | None = None, caption: str | None = None) -> Table:
    """One without rows and columns, and with a line below its head alone."""
    return Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        pad_edge=False,
    )


BETWEEN = 3
"""Characters between two columns."""


def fitting_columns(
    widths: Mapping[str, int], unneeded: Sequence[str], width: int, kind: Callable[[str], str] = str
) -> list[str]:
    """The columns that fit into `width` characters: while they do not, those of the next kind in `unneeded` go."""
    names = list(widths)
    for one in unneeded:
        if sum(widths[name] + BETWEEN for name in names) > width:
            names = [name for name in names if kind(name) != one]
    return names
