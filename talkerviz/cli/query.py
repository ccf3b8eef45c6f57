"""`talkerviz query`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talkerviz.cli.app import app
from talkerviz.cli.options import check_format
from talkerviz.cli.output import check_writable, console, write
from talkerviz.query import query
from talkerviz.render.answer import ANSWERS, MOST_ROWS, answer_table, render_answer


@app.command("query")
def query_command(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A SELECT from calls, runs or modules.")],
    files: Annotated[list[Path], typer.Argument(metavar="TRACES...", help="Thousands, if need be.")],
    fmt: Annotated[str | None, typer.Option("-f", "--format", help=f"One of {', '.join(ANSWERS)}.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="A file, for -f; - for stdout.")] = "-",
) -> None:
    """Ask many traces in SQL: `calls` has a row a call, `runs` a row a file, `modules` a row a module."""
    if fmt is not None:
        check_format(fmt, tuple(ANSWERS))
    elif output != "-":
        raise ValueError(f"-o: name the format with -f, one of {', '.join(ANSWERS)}")
    check_writable(output)
    answer = query(sql, files)
    if fmt is not None:
        write(output, lambda: render_answer(answer, fmt, sql))
        return
    terminal = console()
    terminal.print(answer_table(answer))
    if (more := answer.num_rows - MOST_ROWS) > 0:
        terminal.print(f"{more:,} more rows; -f csv writes all", highlight=False, soft_wrap=True)
