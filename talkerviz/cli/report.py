"""`talkerviz report`: the folder with a page, tables and charts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talkerviz.api import Trace
from talkerviz.cli.app import app
from talkerviz.cli.options import Rank, TracePath
from talkerviz.cli.output import print_written
from talkerviz.cli.streams import print_message
from talkerviz.render.terminal.console import console
from talkerviz.report.folder import ReportFolder
from talkerviz.report.writer import write_report
from talkerviz.trace.labels import format_count


@app.command()
def report(
    path: TracePath,
    output: Annotated[Path, typer.Option("-o", "--output", help="Output folder.")] = Path("report"),
    rank: Rank = None,
) -> None:
    """Write a report on a trace: a folder with a page, a text, tables and charts."""
    ReportFolder(output)  # raises for a folder that holds other files, before the trace is read
    trace = Trace.load(path).select(rank=rank)
    with console().status("") as status:
        notes = write_report(trace, output, lambda name: status.update(f"writing {name}"))
    for note in notes:
        print_message(note)
    print_written(output / "index.html", format_count(len(trace.calls), "call"))
