"""Comparison of two runs: its table for all formats, and its flowchart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from talkerviz.analysis.compare import BY_COMPARED, compare
from talkerviz.flowchart.diff import collapse_unchanged, diff_graph
from talkerviz.flowchart.model import MAX_BOXES, Edges, Graph
from talkerviz.render.charts.graphviz import RenderError
from talkerviz.render.registry import CHARTS, render_graph
from talkerviz.render.tables.cells import TableCells
from talkerviz.render.tables.writers import html_table, markdown_table
from talkerviz.render.terminal.comparison import comparison_cells, notes_on_comparison, put_together
from talkerviz.trace.trace import TraceRecord

DEFAULT_ROWS = 20
"""Rows below those of the phases, which fill a screen."""

_TABLES: Mapping[str, Callable[[TableCells], str]] = {"markdown": markdown_table, "html": html_table}
DIFF_TABLES = tuple(_TABLES)
DIFF_FORMATS = (*DIFF_TABLES, *CHARTS)


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        before, after: the two traces.
        by: rows of the table below those of the phases.
        top: maximum number of these rows.
        edges: arrows of the chart, or None for tensor flow if both traces have it.
        phases: rows of `compare` by phase; None without times in both traces.
        rows: rows of the whole table; None without times in both traces.
        hidden_rows: number of rows that are left out for `top`.
        notes: notes on the numbers, or why no times are compared.
    """

    before: TraceRecord
    after: TraceRecord
    by: str
    top: int
    edges: Edges | None
    phases: pd.DataFrame | None
    rows: pd.DataFrame | None
    hidden_rows: int
    notes: tuple[str, ...]

    def graph(self) -> Graph:
        """Build the flowchart of both runs."""
        return diff_graph(self.before, self.after, self.edges)


def compare_runs(
    before: TraceRecord,
    after: TraceRecord,
    by: str = "module",
    top: int = DEFAULT_ROWS,
    edges: Edges | None = None,
    times: Literal["required", "if known", "none"] = "if known",
) -> Comparison:
    """Compare two runs.

    Args:
        before: trace of the first run.
        after: trace of the second run.
        by: rows of the table: `module`, `class`, `phase` or `layer`.
        top: maximum number of rows below those of the phases.
        edges: arrows of the chart: `flow`, `calls`, or None for tensor flow if both traces have it.
        times: `required` raises if a trace has no times; `none` compares the modules called alone.

    Raises:
        ValueError: unknown `by`, or times are required and a trace has none.
    """
    if by not in BY_COMPARED:
        raise ValueError(f"by: unknown value {by!r}; choose from {', '.join(BY_COMPARED)}")
    if top < 0:
        raise ValueError(f"top: must be at least 0, not {top}")
    phases: pd.DataFrame | None = None
    rows: pd.DataFrame | None = None
    hidden_rows = 0
    notes: tuple[str, ...] = ()
    if times != "none":
        try:
            phases = compare(before, after, "phase")
        except ValueError as error:
            if times == "required":
                raise
            notes = (f"No times are compared: {error}.",)
        else:
            every = compare(before, after, by)
            rows, notes = put_together(phases, every, by, top), notes_on_comparison(phases)
            hidden_rows = 0 if by == "phase" else max(0, len(every) - top)
    return Comparison(before, after, by, top, edges, phases, rows, hidden_rows, notes)


def render_comparison_as(comparison: Comparison, fmt: str, max_nodes: int | None = None) -> bytes:
    """Write a comparison in one of `DIFF_FORMATS`.

    Args:
        comparison: two runs, with times for a table.
        fmt: name of the format.
        max_nodes: maximum number of boxes of a chart; `MAX_BOXES` by default.

    Raises:
        RenderError: unknown format, or a program that it needs is missing.
    """
    if fmt in CHARTS:
        return render_graph(collapse_unchanged(comparison.graph(), max_nodes or MAX_BOXES), fmt)
    if fmt not in _TABLES or comparison.rows is None:
        raise RenderError(f"unknown format {fmt!r}: choose from {', '.join(DIFF_FORMATS)}")
    hidden = comparison.hidden_rows
    more = (f"{hidden:,} more rows are left out.",) if hidden else ()
    cells = comparison_cells(comparison.rows, comparison.by, (*more, *comparison.notes))
    return _TABLES[fmt](cells).encode()
