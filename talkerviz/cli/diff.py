"""`talkerviz diff`."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.text import Text

from talkerviz.analysis.compare import compare, slower
from talkerviz.api import Trace
from talkerviz.cli.app import app
from talkerviz.cli.options import ArrowsAre, MaxNodes, TracePath, format_of
from talkerviz.cli.output import check_no_terminal, check_stdout, check_writable, console, write
from talkerviz.cli.streams import print_message
from talkerviz.flowchart.diff import changes, diff_graph, without_what_is_same
from talkerviz.flowchart.model import Graph
from talkerviz.flowchart.options import MOST_BOXES
from talkerviz.render.registry import CHARTS, PICTURES, render_graph
from talkerviz.render.tables.cells import TableCells
from talkerviz.render.tables.writers import html_table, markdown_table
from talkerviz.render.terminal.comparison import (
    comparison_cells,
    interval_text,
    notes_on_comparison,
    percent_text,
    put_together,
    render_changes,
    render_comparison,
)

_TABLES: Mapping[str, Callable[[TableCells], str]] = {"markdown": markdown_table, "html": html_table}
_FORMATS = (*_TABLES, *CHARTS)
_FORMAT_HELP = f"One of {', '.join(_FORMATS)}; left out, it is what the file of -o ends in."
_MOST_ROWS = 20


class ComparedBy(str, enum.Enum):
    """What a row of the table stands for."""

    module = "module"
    klass = "class"
    phase = "phase"
    layer = "layer"


@app.command()
def diff(
    before: TracePath,
    after: Annotated[Path, typer.Argument(metavar="TRACE", help="Another one.")],
    by: Annotated[ComparedBy | None, typer.Option(help="What a row stands for; by default a module.")] = None,
    top: Annotated[int | None, typer.Option(min=0, help=f"So many rows below the phases, not {_MOST_ROWS}.")] = None,
    fail_above: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT", help="Exit with 1 if a frame, or a phase of it, is slower by more for certain."
        ),
    ] = None,
    fmt: Annotated[str | None, typer.Option("-f", "--format", help=_FORMAT_HELP)] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The table or drawing; - for stdout.")] = "-",
    edges: ArrowsAre = None,
    max_nodes: MaxNodes = None,
) -> None:
    """Say where two runs differ, in time and in what they call; or write the table, or draw both as one, with -f.

    With --fail-above 5% the exit code is 1 if a whole frame's time, or that of a phase in it, is above what it was by
    more than 5 % with all of its 95 % interval.
    """
    limit = None if fail_above is None else _limit(fail_above)
    if fmt is not None or output != "-":
        fmt = format_of(fmt, output, _FORMATS)
        check_stdout(output)
        if fmt in PICTURES:
            check_no_terminal(output, fmt)
        _check_options(fmt, {"--by": by, "--top": top}, tuple(_TABLES))
        _check_options(fmt, {"--edges": edges, "--max-nodes": max_nodes}, CHARTS)
    check_writable(output)
    one, two = Trace.load(before), Trace.load(after)
    rows_by, most = by.value if by else "module", _MOST_ROWS if top is None else top
    arrows = edges.value if edges else None
    phases: pd.DataFrame | None = None
    untimed: tuple[str, ...] = ()
    if fmt not in CHARTS or limit is not None:
        try:
            phases = compare(one, two, "phase")
        except ValueError as error:  # no times; what they call can be told all the same
            if fmt is not None or by is not None or limit is not None:
                raise
            untimed = (f"No times are compared: {error}.",)
    beyond = None if limit is None or phases is None else slower(phases, limit)

    if fmt in CHARTS:
        drawn = without_what_is_same(diff_graph(one, two, arrows), max_nodes or MOST_BOXES)
        write(output, lambda: render_graph(drawn, str(fmt)))
    elif phases is None:
        _print_changes(console(), diff_graph(one, two, arrows), untimed)
    else:
        rows = compare(one, two, rows_by)
        shown, notes = put_together(phases, rows, rows_by, most), notes_on_comparison(phases)
        left_out = 0 if rows_by == "phase" else max(0, len(rows) - most)
        if fmt is not None:
            more = (f"{left_out:,} more rows are left out.",) if left_out else ()
            write(output, lambda: _TABLES[fmt](comparison_cells(shown, rows_by, (*more, *notes))).encode())
        else:
            terminal = console()
            terminal.print(render_comparison(shown, rows_by, most, left_out, terminal.width))
            _print_notes(terminal, notes)
            _print_changes(terminal, diff_graph(one, two, arrows), untimed)
    if beyond is not None and len(beyond):
        _say(beyond, str(fail_above))
        raise typer.Exit(1)


def _check_options(fmt: str, given: Mapping[str, object], having: Sequence[str]) -> None:
    for option, value in given.items():
        if value is not None and fmt not in having:
            raise ValueError(f"{option}: only {', '.join(having)} have it, not {fmt}")


def _print_changes(terminal: Console, graph: Graph, more: Sequence[str]) -> None:
    if found := changes(graph):
        terminal.print(render_changes(found))
    _print_notes(terminal, (*graph.notes, *more))


def _print_notes(terminal: Console, notes: Sequence[str]) -> None:
    for note in notes:
        terminal.print(Text(note, style="dim"), soft_wrap=True)


def _limit(text: str) -> float:
    try:
        limit = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise ValueError(f"--fail-above {text}: give a percentage such as 5%")
    return limit


def _say(found: pd.DataFrame, limit: str) -> None:
    worst = found.iloc[0]
    interval = interval_text(worst["low"], worst["high"])
    others = f"; so are {', '.join(found['phase'][1:])}" if len(found) > 1 else ""
    print_message(
        f"{worst['phase']} is slower by {percent_text(worst['change'])} (95 % interval {interval}), "
        f"more than --fail-above {limit}{others}"
    )
