"""`talkerviz diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from talkerviz.cli.app import app
from talkerviz.cli.options import ArrowsAre, Format, MaxNodes, TracePath, check_format
from talkerviz.cli.output import check_writable, console, write
from talkerviz.graph.diff import changes, diff_graph, without_what_is_same
from talkerviz.graph.view import MOST_BOXES
from talkerviz.render.changes import render_changes
from talkerviz.render.formats import render_graph
from talkerviz.trace import Trace


@app.command()
def diff(
    before: TracePath,
    after: Annotated[Path, typer.Argument(metavar="TRACE", help="Another one.")],
    fmt: Annotated[str | None, Format] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="The drawing; - for stdout.")] = "-",
    edges: ArrowsAre = None,
    max_nodes: MaxNodes = None,
) -> None:
    """Say which modules two runs differ in, or draw both as one with -f."""
    if fmt is None and output != "-":
        raise ValueError("-o: only a drawing is written; name its format with -f")
    if fmt is not None:
        check_format(fmt)
    check_writable(output)
    graph = diff_graph(Trace.load(before), Trace.load(after), edges.value if edges else None)
    if fmt is not None:
        drawn = without_what_is_same(graph, max_nodes or MOST_BOXES)
        write(output, lambda: render_graph(drawn, fmt))
        return
    terminal = console()
    terminal.print(render_changes(changes(graph)))
    for note in graph.notes:
        terminal.print(Text(note, style="dim"), soft_wrap=True)
