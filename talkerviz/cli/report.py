"""`talkerviz report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talkerviz.cli.app import app
from talkerviz.cli.options import Rank, TracePath
from talkerviz.cli.output import check_folder, console, say
from talkerviz.report import write_report
from talkerviz.trace import Trace
from talkerviz.trace.counted import counted


@app.command()
def report(
    path: TracePath,
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder.")] = Path("report"),
    rank: Rank = None,
) -> None:
    """Write a report on a trace: one page, a text, tables, diagrams."""
    check_folder(output)
    trace = Trace.load(path).select(rank=rank)
    terminal = console()
    with terminal.status("") as status:
        notes = write_report(trace, output, lambda name: status.update(f"writing {name}"))
    for note in notes:
        say(note)
    terminal.print(f"{counted(len(trace.calls), 'call')} -> {output / 'index.html'}", highlight=False, soft_wrap=True)
