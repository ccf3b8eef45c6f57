"""Style and column selection of tables on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.table import Table


def plain_table(title: str | None = None, caption: str | None = None) -> Table:
    """Make an empty table with a line below its header."""
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
    """Select the columns that fit into `width` characters, dropping those in `unneeded` one kind at a time."""
    names = list(widths)
    for dropped in unneeded:
        if sum(widths[name] + BETWEEN for name in names) > width:
            names = [name for name in names if kind(name) != dropped]
    return names
