"""Every format of tables by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from talkerviz.render.notes import notes_on
from talkerviz.render.table_cells import TableCells, table_cells
from talkerviz.render.table_csv import csv_table
from talkerviz.render.table_html import html_table
from talkerviz.render.table_json import json_table
from talkerviz.render.table_latex import latex_table
from talkerviz.render.table_markdown import markdown_table
from talkerviz.trace import Trace
from talkerviz.trace.side_by_side import side_by_side
from talkerviz.trace.summary import summarise

_READ: Mapping[str, Callable[[TableCells], str]] = {
    "markdown": markdown_table,
    "latex": latex_table,
    "html": html_table,
}
_REUSED: Mapping[str, Callable[[pd.DataFrame], bytes]] = {"csv": csv_table, "json": json_table}

TABLES = (*_READ, *_REUSED)
"""Formats of tables: those that people read have the columns that were measured, the others all of them, unrounded."""


@dataclass(frozen=True)
class Rows:
    """What a table shows.

    Attributes:
        by: what a row stands for, of `summary.BY`.
        across: what is set side by side, of `side_by_side.ACROSS`; None for nothing.
        sort: what comes first, of `summary.SORTS`; None for what suits the rows.
        top: how many rows; None for all.
    """

    by: str = "module"
    across: str | None = None
    sort: str | None = None
    top: int | None = None

    @property
    def title(self) -> str:
        """What the table is, `Time by module, phases side by side`."""
        return f"Time by {self.by}" + (f", {self.across}s side by side" if self.across else "")


def rows_of(trace: Trace, rows: Rows) -> pd.DataFrame:
    """The table's numbers, with all of its rows.

    Raises:
        ValueError: as `summarise` and `side_by_side`.
    """
    if rows.across:
        return side_by_side(trace, rows.by, rows.across, rows.sort)
    return summarise(trace, rows.by, rows.sort)


def render_rows(trace: Trace, fmt: str, rows: Rows) -> bytes:
    """A table in one of `TABLES`.

    Raises:
        ValueError: as `rows_of`.
    """
    summary = rows_of(trace, rows)
    shown = summary if rows.top is None else summary.head(rows.top)
    if fmt in _REUSED:
        return _REUSED[fmt](shown)
    more = len(summary) - len(shown)
    notes = [f"{more:,} more rows are left out."] if more else []
    return _READ[fmt](table_cells(shown, rows.by, rows.title, (*notes, *notes_on(trace)))).encode()
