"""Comparison of two runs: its table for all formats, and its flowchart."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from talkerviz.analysis.compare import BY_COMPARED, compare
from talkerviz.analysis.structure import StructureDiff, structure_diff
from talkerviz.flowchart.diff import collapse_unchanged, diff_graph
from talkerviz.flowchart.model import MAX_BOXES, Edges, Graph
from talkerviz.render.charts.graphviz import RenderError
from talkerviz.render.options import DEFAULT_ROWS
from talkerviz.render.registry import CHARTS, render_graph
from talkerviz.render.tables.writers import csv_table, html_tables, json_table, markdown_table
from talkerviz.render.terminal.comparison import (
    TITLE,
    changes_cells,
    comparison_cells,
    notes_on_comparison,
    put_together,
)
from talkerviz.trace.trace import TraceRecord

DIFF_TABLES = ("markdown", "html", "csv", "json")
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
        every: rows of `compare` by `by`; None without times in both traces.
        structure: modules that differ.
        notes: notes on the numbers, or why no times are compared.
    """

    before: TraceRecord
    after: TraceRecord
    by: str
    top: int
    edges: Edges | None
    phases: pd.DataFrame | None
    every: pd.DataFrame | None
    structure: StructureDiff
    notes: tuple[str, ...]

    @property
    def rows(self) -> pd.DataFrame | None:
        """Rows of the printed table; None without times in both traces."""
        if self.phases is None or self.every is None:
            return None
        return put_together(self.phases, self.every, self.by, self.top)

    @property
    def hidden_rows(self) -> int:
        """Number of rows that are left out for `top`."""
        return 0 if self.every is None or self.by == "phase" else max(0, len(self.every) - self.top)

    def graph(self) -> Graph:
        """Build the flowchart of both runs."""
        return diff_graph(self.before, self.after, self.edges)


def compare_runs(
    before: TraceRecord,
    after: TraceRecord,
    by: str = "pattern",
    top: int = DEFAULT_ROWS,
    edges: Edges | None = None,
    times: Literal["required", "if known", "none"] = "if known",
) -> Comparison:
    """Compare two runs.

    Args:
        before: trace of the first run.
        after: trace of the second run.
        by: rows of the table, as of `compare`.
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
    every: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    if times != "none":
        try:
            phases = compare(before, after, "phase")
        except ValueError as error:
            if times == "required":
                raise
            notes = (f"No times are compared: {error}.",)
        else:
            every, notes = compare(before, after, by), notes_on_comparison(phases)
    return Comparison(before, after, by, top, edges, phases, every, structure_diff(before, after), notes)


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
    if fmt not in DIFF_TABLES or comparison.phases is None or comparison.every is None or comparison.rows is None:
        raise RenderError(f"unknown format {fmt!r}: choose from {', '.join(DIFF_FORMATS)}")
    every = comparison.phases
    if comparison.by != "phase":
        every = pd.concat([comparison.phases, comparison.every], ignore_index=True)
    if fmt == "csv":
        return csv_table(every)
    if fmt == "json":
        changes = [asdict(change) for change in comparison.structure.changes]
        notes = [comparison.structure.summary, *comparison.structure.notes]
        rest = json.dumps({"changes": changes, "notes": notes}, ensure_ascii=False, indent=1)
        return b'{"times": ' + json_table(every).rstrip() + b",\n" + rest.removeprefix("{\n").encode() + b"\n"
    hidden = comparison.hidden_rows
    more = (f"{hidden:,} more rows are left out.",) if hidden else ()
    times = comparison_cells(comparison.rows, comparison.by, (*more, *comparison.notes))
    tables = (times, changes_cells(comparison.structure))
    text = html_tables(TITLE, tables) if fmt == "html" else "\n".join(map(markdown_table, tables))
    return text.encode()
