"""`talkerviz report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talkerviz.api import Trace
from talkerviz.cli.app import app
from talkerviz.cli.options import Rank, TracePath
from talkerviz.cli.output import console
from talkerviz.cli.streams import print_message
from talkerviz.report.folder import ReportFolder
from talkerviz.report.writer import write_report
from talkerviz.trace.names import counted


@app.command()
def report(
    path: TracePath,
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder.")] = Path("report"),
    rank: Rank = None,
) -> None:
    """Write a report on a trace: one page, a text, tables, diagrams."""
    ReportFolder(output)  # refuses a folder that is not a report's
    trace = Trace.load(path).select(rank=rank)
    terminal = console()
    with terminal.status("") as status:
        notes = write_report(trace, output, lambda name: status.update(f"writing {name}"))
    for note in notes:
        print_message(note)
    terminal.print(f"{counted(len(trace.calls), 'call')} -> {output / 'index.html'}", highlight=False, soft_wrap=True)
