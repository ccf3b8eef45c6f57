"""`talkerviz show` and `talkerviz tree`."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from talkerviz.cli.app import app
from talkerviz.cli.options import Depth, Phase, TracePath
from talkerviz.cli.output import console, print_notes
from talkerviz.render.table import render_table
from talkerviz.render.tree import render_tree
from talkerviz.trace import Trace
from talkerviz.trace.summary import summarise


class By(str, enum.Enum):
    """What a row of the table stands for."""

    module = "module"
    klass = "class"
    phase = "phase"
    layer = "layer"
    frame = "frame"
    call = "call"


class Sort(str, enum.Enum):
    """What comes first."""

    self_ = "self"
    total = "total"
    calls = "calls"


@app.command()
def show(
    path: TracePath,
    by: Annotated[By, typer.Option(help="What a row stands for.")] = By.module,
    phase: Phase = None,
    sort: Annotated[Sort | None, typer.Option(help="By default self, but the run's order by phase and frame.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
) -> None:
    """Print a latency table."""
    chosen = Trace.load(path).select(phase=phase)
    terminal = console()
    terminal.print(
        render_table(summarise(chosen, by.value, sort.value if sort else None), by.value, top, terminal.width)
    )
    print_notes(terminal, chosen)


@app.command()
def tree(path: TracePath, phase: Phase = None, depth: Depth = None) -> None:
    """Print the call tree, what repeats folded."""
    console().print(render_tree(Trace.load(path).select(phase=phase), depth=depth))
