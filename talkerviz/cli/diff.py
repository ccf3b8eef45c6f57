"""`talkerviz diff`: comparison of two traces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import typer

from talkerviz.analysis.compare import ComparedBy, slower
from talkerviz.api import Trace
from talkerviz.cli.app import app
from talkerviz.cli.options import TracePath, format_help, format_of, with_render_options
from talkerviz.cli.output import check_no_terminal, check_stdout, check_writable, write
from talkerviz.cli.streams import print_message
from talkerviz.render.diff import DIFF_FORMATS, DIFF_TABLES, compare_runs, render_comparison_as
from talkerviz.render.options import DEFAULT_ROWS, RenderOptions
from talkerviz.render.registry import BINARY, CHARTS
from talkerviz.render.terminal.comparison import interval_text, percent_text
from talkerviz.render.terminal.console import console
from talkerviz.render.terminal.printing import print_comparison


@app.command()
@with_render_options("edges", "max_nodes")
def diff(
    before: TracePath,
    after: Annotated[Path, typer.Argument(metavar="TRACE", help="Trace file to compare with it.")],
    options: RenderOptions,
    by: Annotated[ComparedBy | None, typer.Option(help="Rows of the table. Default: pattern.")] = None,
    top: Annotated[
        int | None, typer.Option(min=0, help=f"Maximum number of rows below those of phases. Default: {DEFAULT_ROWS}.")
    ] = None,
    fail_above: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Exit with 1 if a frame, or a phase of it, is slower by more than this, with its 95 % interval.",
        ),
    ] = None,
    fail_on: Annotated[
        Literal["structure"] | None,
        typer.Option(help="Exit with 1 if modules are added, removed, or called with other classes or shapes."),
    ] = None,
    fmt: Annotated[str | None, typer.Option("-f", "--format", help=format_help(DIFF_FORMATS))] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="Output file; - for stdout.")] = "-",
) -> None:
    """Print where two runs differ, in time and in the modules called; with -f or -o, write a table or a chart of both.

    With --fail-above 5% the exit code is 1 if the time of a whole frame, or of a phase in it, has grown by more than
    5 % with all of its 95 % interval; with --fail-on structure, if other modules are called.
    """
    limit = None if fail_above is None else _limit(fail_above)
    if fmt is not None or output != "-":
        fmt = format_of(fmt, output, DIFF_FORMATS)
        check_stdout(output)
        if fmt in BINARY:
            check_no_terminal(output, fmt)
        for name, value, formats in (
            ("--by", by, DIFF_TABLES),
            ("--top", top, DIFF_TABLES),
            ("--edges", options.edges, CHARTS),
            ("--max-nodes", options.max_nodes, CHARTS),
        ):
            if value is not None and fmt not in formats:
                raise ValueError(f"{name}: only {', '.join(formats)} have it, not {fmt}")
    check_writable(output)
    chart = fmt in CHARTS
    comparison = compare_runs(
        Trace.load(before),
        Trace.load(after),
        by or "pattern",
        DEFAULT_ROWS if top is None else top,
        options.edges,
        # The modules called can be compared without times, if only they are asked for.
        "required" if limit is not None or by is not None or fmt in DIFF_TABLES else "none" if chart else "if known",
    )
    beyond = None if limit is None or comparison.phases is None else slower(comparison.phases, limit)
    if fmt is None:
        print_comparison(console(), comparison)
    else:
        write(output, lambda: render_comparison_as(comparison, fmt, options.max_nodes))
    if beyond is not None and len(beyond):
        _print_slower(beyond, str(fail_above))
    differs = fail_on == "structure" and bool(comparison.structure.changes)
    if differs:
        print_message(f"the modules called differ: {comparison.structure.summary}")
    if differs or (beyond is not None and len(beyond)):
        raise typer.Exit(1)


def _limit(text: str) -> float:
    try:
        limit = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise ValueError(f"--fail-above {text}: give a percentage such as 5%")
    return limit


def _print_slower(phases: pd.DataFrame, limit: str) -> None:
    worst = phases.iloc[0]
    interval = interval_text(worst["low"], worst["high"])
    others = f"; so are {', '.join(phases['phase'][1:])}" if len(phases) > 1 else ""
    print_message(
        f"{worst['phase']} is slower by {percent_text(worst['change'])} (95 % interval {interval}), "
        f"more than --fail-above {limit}{others}"
    )
