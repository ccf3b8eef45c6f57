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

_FORMAT_HELP = f"One of {', '.join(ANSWERS)}; left out, it is what the file of -o ends in."


@app.command("query")
def query_command(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A SELECT from calls, runs or modules.")],
    files: Annotated[list[Path], typer.Argument(metavar="TRACES...", help="Thousands, if need be.")],
    fmt: Annotated[str | None, typer.Option("-f", "--format", help=_FORMAT_HELP)] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="A file; - for stdout.")] = "-",
) -> None:
    """Ask many traces in SQL: `calls` has a row a call, `runs` a row a file, `modules` a row a module."""
    if fmt is not None or output != "-":
        fmt = format_of(fmt, output, tuple(ANSWERS))
        check_stdout(output)
        if fmt == "parquet":
            check_no_terminal(output, fmt)
    check_writable(output)
    answer = query(sql, files)
    if fmt is not None:
        write(output, lambda: render_answer(answer, fmt, sql))
        return
    terminal = console()
    terminal.print(answer_table(answer))
    if (more := answer.num_rows - MOST_ROWS) > 0:
        terminal.print(f"{more:,} more rows; -f csv writes all", highlight=False, soft_wrap=True)
