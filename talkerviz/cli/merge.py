"""`talkerviz merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from talkerviz.analysis.stragglers import missing_ranks, stragglers
from talkerviz.api import Trace
from talkerviz.cli.app import app
from talkerviz.cli.output import check_writable, console
from talkerviz.trace.event_blocks import read_blocks
from talkerviz.trace.labels import format_count
from talkerviz.trace.merge import merge
from talkerviz.trace.parquet import check_name
from talkerviz.trace.validation import DamagedError


@app.command("merge")
def merge_command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="TRACES...", help="One trace per rank, such as run.rank*.parquet.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Merged trace to write.")] = Path(
        "merged.parquet"
    ),
) -> None:
    """Merge the traces of several ranks or processes, align their clocks, and name the rank that others wait for."""
    check_writable(output)
    check_name(output)
    if output in paths:
        raise ValueError(f"-o {output}: one of the traces to merge; name another file")
    traces = []
    for path in paths:
        if path.name.endswith(".partial") and path.exists() and _is_empty(path):
            typer.echo(f"{path}: left out, as its rank was stopped before it wrote a call", err=True)
            continue
        trace = Trace.load(path)
        if "process" not in trace.facts:
            raise ValueError(
                f"{path}: it belongs to no rank; record several processes, as under torchrun or with run --follow"
            )
        traces.append(trace)
    merged = merge(traces)
    merged.save(output)
    terminal = console()
    if merged.calls["host_ns"].notna().any():
        waits = stragglers(merged)
        for line in missing_ranks(merged):
            terminal.print(Text(line), soft_wrap=True)
        terminal.print(Text(waits.sentence, style="bold"), soft_wrap=True)
    ranks = merged.calls["rank"].nunique()
    terminal.print(
        f"{format_count(len(merged.calls), 'call')} of {ranks:,} ranks -> {output}", highlight=False, soft_wrap=True
    )


def _is_empty(partial: Path) -> bool:
    """Return whether the file of an unfinished run has no calls: at most a header."""
    blocks = read_blocks(partial)
    try:
        next(blocks, None)
        return next(blocks, None) is None
    except DamagedError:  # reading it tells how
        return False
