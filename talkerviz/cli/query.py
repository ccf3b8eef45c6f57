"""`talkerviz query`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talkerviz.analysis.sql import query
from talkerviz.cli.app import app
from talkerviz.cli.options import format_of
from talkerviz.cli.output import check_no_terminal, check_stdout, check_writable, console, write
from talkerviz.render.tables.query_result import ANSWERS, MOST_ROWS, answer_table, render_answer
from talkerviz.trace.labels import format_count

_FORMAT_HELP = f"Output format: {', '.join(ANSWERS)}. Default: by the ending of the output file."


@app.command("query")
def query_command(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="SELECT statement over calls, runs or modules.")],
    files: Annotated[list[Path], typer.Argument(metavar="TRACES...", help="Trace files.")],
    fmt: Annotated[str | None, typer.Option("-f", "--format", help=_FORMAT_HELP)] = None,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="File to write; - is stdout.")] = "-",
) -> None:
    """Query traces in SQL: `calls` has a row per call, `runs` a row per file, `modules` a row per module."""
    if fmt is not None or output != "-":
        fmt = format_of(fmt, output, tuple(ANSWERS))
        check_stdout(output)
        if fmt == "parquet":
            check_no_terminal(output, fmt)
    check_writable(output)
    answer = query(sql, files)
    if fmt is not None:
        write(output, lambda: render_answer(answer, fmt, sql))
        if output != "-":
            console().print(f"{format_count(answer.num_rows, 'row')} -> {output}", highlight=False, soft_wrap=True)
        return
    terminal = console()
    terminal.print(answer_table(answer))
    if (more := answer.num_rows - MOST_ROWS) > 0:
        terminal.print(f"{more:,} more rows; -f csv writes all", highlight=False, soft_wrap=True)
