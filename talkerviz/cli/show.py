"""`talkerviz show` and `talkerviz tree`: latency tables and call trees on the terminal."""

from __future__ import annotations

import glob
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from talkerviz.api import Trace
from talkerviz.cli.app import app
from talkerviz.cli.options import TracePath, with_render_options
from talkerviz.render.escape import visible
from talkerviz.render.options import RenderOptions, option_flag
from talkerviz.render.terminal.console import console
from talkerviz.render.terminal.printing import check_show_options, print_ranks, print_table, print_tree, write_ranks
from talkerviz.trace.late_frames import late_frame_of


@app.command()
@with_render_options("by", "across", "sort", "top", "phase", "frame", "module", "rank")
def show(
    path: TracePath,
    options: RenderOptions,
    runs: Annotated[
        bool, typer.Option("--runs", help="Differences between the runs of `trace --repeat`, instead of sums.")
    ] = False,
    late: Annotated[
        bool, typer.Option("--late", help="Frames that missed the deadline of `run --deadline`, a line each.")
    ] = False,
    ranks: Annotated[
        bool, typer.Option("--ranks", help="Waits of the ranks of a merged trace for each other, instead of times.")
    ] = False,
    format: Annotated[
        Literal["csv", "json"] | None, typer.Option("-f", "--format", help="Write the table of --ranks for programs.")
    ] = None,
) -> None:
    """Print a latency table."""
    check_show_options(options, runs, ranks, option_flag)
    if format and not ranks:
        raise ValueError("--format: only with --ranks; `talkerviz render` writes other tables in any format")
    if late:
        _print_late(path)
        return
    trace = Trace.load(path)
    if ranks and format:
        sys.stdout.write(write_ranks(trace, options, format).decode())
    elif ranks:
        print_ranks(console(), trace, options)
    else:
        print_table(console(), trace, options, runs)


def _print_late(path: Path) -> None:
    """Print a line for each late frame with a file beside a trace, in their order."""
    files = path.parent.glob(f"{glob.escape(path.stem)}.late*{path.suffix}")
    late = sorted(late_frame_of(Trace.load(file), file) for file in files)
    if not late:
        raise ValueError(f"{path}: no late frames beside it; record them with `talkerviz run --deadline 80ms`")
    for frame in late:
        print(visible(frame.line))


@app.command()
@with_render_options(
    *("phase", "frame", "module", "rank", "depth", "sort"),
    depth="Levels below the phases; 0 shows the outermost calls alone.",
    sort="Column to sort modules with the same caller by, numbers largest first. Default: run order.",
)
def tree(path: TracePath, options: RenderOptions) -> None:
    """Print the call tree, repeated modules folded."""
    print_tree(console(), Trace.load(path), options)
