"""What all tables in a terminal look like."""

from __future__ import annotations

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
