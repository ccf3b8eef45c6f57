"""Tables, trees and comparisons of traces, printed with their notes.

What a single one of them needs is imported there: a table of 60,000 calls takes less time than all imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from talkerviz.analysis.frame_latency import frame_summary
from talkerviz.render.notes import headline, notes_on
from talkerviz.render.options import DEFAULT_ROWS, OPTIONS, Naming, RenderOptions, option_name
from talkerviz.render.registry import select
from talkerviz.render.tables.summary import rows_by, table_of, table_title
from talkerviz.render.terminal.summary_table import render_table
from talkerviz.trace import TraceRecord

if TYPE_CHECKING:
    from talkerviz.render.diff import Comparison


def check_show_options(options: RenderOptions, runs: bool, ranks: bool, naming: Naming = option_name) -> None:
    """Reject options of a table that do not go together.

    Raises:
        ValueError: `runs` with `across` or `sort`; `ranks` with `runs`, `across`, `sort` or `rank`.
    """
    for table, names in (("runs", ("across", "sort")), ("ranks", ("across", "sort", "rank"))):
        if not {"runs": runs, "ranks": ranks}[table]:
            continue
        switch = table if naming is option_name else f"--{table}"
        for option in (OPTIONS[name] for name in names):
            if getattr(options, option.name) is not None:
                raise ValueError(f"{naming(option)}: not with {switch}")
    if runs and ranks:
        first, second = ("runs", "ranks") if naming is option_name else ("--runs", "--ranks")
        raise ValueError(f"{first}: not with {second}")


def print_table(to: Console, trace: TraceRecord, options: RenderOptions, runs: bool = False) -> None:
    """Print a latency table and the notes on its numbers.

    Args:
        to: console.
        trace: trace, of which the options select calls.
        options: rows, columns and order.
        runs: print how the trace's runs differ, instead of their sums.

    Raises:
        ValueError: as `Trace.table` and `select`.
    """
    selected, by = select(trace, options), rows_by(options)
    if runs:
        from talkerviz.analysis.run_stats import run_stats

        table = run_stats(selected, by)
        title = f"{table_title(options)} over {table.attrs['runs']} runs"
        to.print(render_table(table, by, options.top or DEFAULT_ROWS, to.width, title))
        return
    top = options.top or DEFAULT_ROWS
    to.print(render_table(table_of(selected, options), by, top, to.width, table_title(options)))
    if by == "frame":
        print_headline(to, selected)
    print_notes(to, selected)


def print_ranks(to: Console, trace: TraceRecord, options: RenderOptions) -> None:
    """Print how the ranks of a merged trace wait for each other.

    Raises:
        ValueError: the trace has a single rank, no such rows of collectives, or as `select`.
    """
    from talkerviz.analysis.stragglers import stragglers, wait_rows

    selected = select(trace, options)
    waits = stragglers(selected, wait_rows(rows_by(options)))
    to.print(render_table(waits.ranks, "rank", None, to.width, "Ranks"))
    if len(waits.collectives):
        title = "Collectives, mean wait of each rank"
        to.print(render_table(waits.collectives, "collective", options.top or DEFAULT_ROWS, to.width, title))
    to.print(Text(waits.sentence, style="bold"), soft_wrap=True)
    _print_lines(to, (*waits.notes, *notes_on(selected)))


def write_ranks(trace: TraceRecord, options: RenderOptions, format: str) -> bytes:
    """Return a table of how the ranks of a merged trace wait for each other, `csv` or `json`, in base units.

    Rows are ranks, or with `by` collectives.

    Raises:
        ValueError: as `print_ranks`.
    """
    from talkerviz.analysis.stragglers import rank_table
    from talkerviz.render.tables.writers import csv_table, json_table

    table = rank_table(select(trace, options), options.by or "rank")
    return (csv_table if format == "csv" else json_table)(table if options.top is None else table.head(options.top))


def print_tree(to: Console, trace: TraceRecord, options: RenderOptions) -> None:
    """Print the call tree, repeated modules folded.

    Raises:
        ValueError: as `render_tree` and `select`.
    """
    from talkerviz.render.terminal.call_tree import render_tree

    # The tree folds calls deeper than `depth`, so the selection keeps them.
    selected = select(trace, replace(options, depth=None))
    to.print(render_tree(selected, options.depth, to.width, options.sort))


def print_comparison(to: Console, comparison: Comparison) -> None:
    """Print where two runs differ, in time and in the modules that they call."""
    from talkerviz.render.terminal.comparison import render_changes, render_comparison

    if comparison.rows is not None:
        table = render_comparison(comparison.rows, comparison.by, comparison.top, comparison.hidden_rows, to.width)
        to.print(table)
        _print_lines(to, comparison.notes)
    structure = comparison.structure
    if structure.changes:
        to.print()
        to.print(render_changes(structure))
        to.print()
    _print_lines(to, (structure.summary, *structure.notes, *(comparison.notes if comparison.rows is None else ())))


def print_headline(to: Console, trace: TraceRecord) -> None:
    """Print frame latencies in a line, if frames were timed."""
    if summary := frame_summary(trace):
        to.print(Text(headline(summary)), soft_wrap=True)


def print_notes(to: Console, trace: TraceRecord) -> None:
    """Print the notes on a trace's numbers."""
    _print_lines(to, notes_on(trace))


def _print_lines(to: Console, lines: Sequence[str]) -> None:
    for line in lines:
        to.print(Text(line, style="dim"), soft_wrap=True)
