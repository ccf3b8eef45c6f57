"""Every format of tables by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from talkerviz.analysis import pivot
from talkerviz.render.notes import notes_on
from talkerviz.render.tables.cells import TableCells, table_cells
from talkerviz.render.tables.writers import csv_table, html_table, json_table, latex_table, markdown_table
from talkerviz.trace import TraceRecord

_READ: Mapping[str, Callable[[TableCells], str]] = {
    "markdown": markdown_table,
    "latex": latex_table,
    "html": html_table,
}
_REUSED: Mapping[str, Callable[[pd.DataFrame], bytes]] = {"csv": csv_table, "json": json_table}

TABLES = (*_READ, *_REUSED)
"""Formats of tables: those that people read have the columns that were measured, the others all of them, unrounded."""


@dataclass(frozen=True)
class TableView:
    """What a table shows.

    Attributes:
        by: what a row stands for, of `summary.BY`.
        across: what is set side by side, of `pivot.ACROSS`; None for nothing.
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


def table_of(trace: TraceRecord, table: TableView) -> pd.DataFrame:
    """The table's numbers, with all of its rows. Raises ValueError as `Trace.table` does."""
    return pivot.table(trace, table.by, table.sort, across=table.across)


def render_table_as(trace: TraceRecord, fmt: str, table: TableView) -> bytes:
    """A table in one of `TABLES`.

    Raises:
        ValueError: as `table_of`.
    """
    summary = table_of(trace, table)
    shown = summary if table.top is None else summary.head(table.top)
    if fmt in _REUSED:
        return _REUSED[fmt](shown)
    more = len(summary) - len(shown)
    notes = [f"{more:,} more rows are left out."] if more else []
    return _READ[fmt](table_cells(shown, table.by, table.title, (*notes, *notes_on(trace)))).encode()
