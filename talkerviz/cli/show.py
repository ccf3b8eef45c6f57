"""`talkerviz show` and `talkerviz tree`."""

from __future__ import annotations

from typing import Annotated

import typer

from talkerviz.analysis.run_stats import over_runs
from talkerviz.api import Trace
from talkerviz.cli.app import app
from talkerviz.cli.options import (
    By,
    Depth,
    Phase,
    Rank,
    RowsBy,
    SetAcross,
    SortBy,
    Top,
    TracePath,
    table_asked_for,
)
from talkerviz.cli.output import console, print_headline, print_notes, print_ranks
from talkerviz.render.tables.registry import table_of
from talkerviz.render.terminal.call_tree import render_tree
from talkerviz.render.terminal.summary_table import render_table


@app.command()
def show(
    path: TracePath,
    by: RowsBy = None,
    across: SetAcross = None,
    phase: Phase = None,
    sort: SortBy = None,
    top: Top = None,
    runs: Annotated[bool, typer.Option("--runs", help="How the runs of `trace --repeat` differ.")] = False,
    ranks: Annotated[bool, typer.Option("--ranks", help="Which ranks of a merged trace wait for which.")] = False,
    rank: Rank = None,
) -> None:
    """Print a latency table."""
    for option, given in {"--across": across, "--sort": sort}.items():
        if runs and given is not None:
            raise ValueError(f"{option}: not with --runs")
    for option, asked in {"--by": by, "--across": across, "--sort": sort, "--runs": runs, "--rank": rank}.items():
        if ranks and asked not in (None, False):
            raise ValueError(f"{option}: not with --ranks")
    view = table_asked_for(by, across, sort, top)
    chosen = Trace.load(path).select(phase=phase, rank=rank)
    terminal = console()
    if ranks:
        print_ranks(terminal, chosen, top)
        return
    if runs:
        table = over_runs(chosen, view.by)
        terminal.print(
            render_table(table, view.by, top, terminal.width, f"{view.title} over {table.attrs['runs']} runs")
        )
        return
    terminal.print(render_table(table_of(chosen, view), view.by, top, terminal.width, view.title))
    if by is By.frame:
        print_headline(terminal, chosen)
    print_notes(terminal, chosen)


@app.command()
def tree(path: TracePath, phase: Phase = None, depth: Depth = None, rank: Rank = None) -> None:
    """Print the call tree, what repeats folded."""
    terminal = console()
    terminal.print(render_tree(Trace.load(path).select(phase=phase, rank=rank), depth, terminal.width))
