"""Latency tables of a trace, from the options of `render`."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from talkerviz.analysis import pivot
from talkerviz.render.column_formats import column_of_heading
from talkerviz.render.notes import notes_on
from talkerviz.render.options import RenderOptions
from talkerviz.render.tables.cells import table_cells
from talkerviz.trace import TraceRecord


def rows_by(options: RenderOptions) -> str:
    """Return what a row of the table is, by default a module."""
    return options.by or "module"


def table_title(options: RenderOptions) -> str:
    """Return the title of a table, such as `Time by module, phases side by side`."""
    return f"Time by {rows_by(options)}" + (f", {options.across}s side by side" if options.across else "")


def table_of(trace: TraceRecord, options: RenderOptions) -> pd.DataFrame:
    """Summarise a trace, with all rows whatever `top` is.

    Raises:
        ValueError: as `Trace.table`.
    """
    sort = options.sort and column_of_heading(options.sort)
    return pivot.table(trace, rows_by(options), sort, across=options.across)


def render_summary(
    trace: TraceRecord, renderer: Callable[..., str | bytes], unrounded: bool, options: RenderOptions
) -> str | bytes:
    """Write a table.

    Args:
        trace: trace to summarise.
        renderer: function that writes `TableCells`, or the DataFrame if `unrounded`.
        unrounded: write all columns in base units.
        options: rows, columns and order.

    Raises:
        ValueError: as `table_of`.
    """
    summary = table_of(trace, options)
    shown = summary if options.top is None else summary.head(options.top)
    if unrounded:
        return renderer(shown)
    hidden_rows = len(summary) - len(shown)
    notes = [f"{hidden_rows:,} more rows are left out."] if hidden_rows else []
    return renderer(table_cells(shown, rows_by(options), table_title(options), (*notes, *notes_on(trace))))
