"""`talkerviz render`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talkerviz.api import Trace
from talkerviz.cli.app import app
from talkerviz.cli.options import (
    ArrowsAre,
    Depth,
    Format,
    MaxNodes,
    Phase,
    Rank,
    RowsBy,
    SetAcross,
    SortBy,
    Top,
    TracePath,
    format_of,
    table_asked_for,
)
from talkerviz.cli.output import (
    check_folder,
    check_no_terminal,
    check_place,
    check_stdout,
    check_writable,
    console,
    write,
)
from talkerviz.cli.streams import print_message
from talkerviz.flowchart.options import View
from talkerviz.render.charts.mermaid import over_github_limits
from talkerviz.render.registry import CHARTS, DRAWN, PICTURES, Given, Style, check_options, render, render_graph
from talkerviz.render.viewers.common import TENSORBOARD_SUFFIX


@app.command("render")
def render_command(
    path: TracePath,
    fmt: Annotated[str | None, Format] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="A file, with --pages a folder; - for stdout.")] = "-",
    style: Annotated[
        Style, typer.Option(help="Nested and folded, a box a call, or the source document.")
    ] = Style.nested,
    phase: Phase = None,
    frame: Annotated[int | None, typer.Option(min=0, help="Only this frame, from 0.")] = None,
    module: Annotated[str | None, typer.Option(metavar="GLOB", help="Only these modules and what is in them.")] = None,
    depth: Depth = None,
    open_: Annotated[
        list[str] | None, typer.Option("--open", metavar="GLOB", help="Draw the inside of these, however deep.")
    ] = None,
    close: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Do not draw the inside of these.")] = None,
    edges: ArrowsAre = None,
    fold: Annotated[bool, typer.Option("--fold/--no-fold", help="Draw once what repeats.")] = True,
    max_nodes: MaxNodes = None,
    pages: Annotated[bool, typer.Option("--pages", help="A page for the inside of each closed box as well.")] = False,
    by: RowsBy = None,
    across: SetAcross = None,
    sort: SortBy = None,
    top: Top = None,
    rank: Rank = None,
) -> None:
    """Draw a trace, or write a table of it or another program's file."""
    fmt = format_of(fmt, output)
    nested = style is Style.nested
    of_tables = {"--by": by, "--across": across, "--sort": sort, "--top": top}
    of_charts = {"--open": open_, "--close": close, "--edges": edges, "--max-nodes": max_nodes, "--pages": pages}
    check_options(fmt, style, Given(of_tables, {**of_charts, "--no-fold": not fold}, "--style"))
    if pages and fmt not in DRAWN:
        raise ValueError(f"--pages: only pictures have it ({', '.join(DRAWN)}), not {fmt}")
    if pages and output == "-":
        raise ValueError("--pages: name a folder with -o")
    if pages:
        check_folder(Path(output))
        check_place(output)
    else:
        check_writable(output)
    check_stdout(output)
    if fmt in PICTURES:
        check_no_terminal(output, fmt)
    chosen = Trace.load(path).select(phase, frame, None if nested and fmt in CHARTS else depth, module, rank=rank)
    view = View(depth, tuple(open_ or ()), tuple(close or ()), max_nodes, edges.value if edges else None, fold)
    if pages:
        _write_pages(chosen, view, fmt, Path(output))
        return
    drawn = write(output, lambda: render(chosen, fmt, style, view, table_asked_for(by, across, sort, top)))
    if fmt == "mermaid" and (note := over_github_limits(drawn.decode())):
        print_message(f"{output}: {note}")
    if fmt == "tensorboard" and output != "-" and not output.endswith(TENSORBOARD_SUFFIX):
        print_message(f"{output}: TensorBoard finds only files that end in {TENSORBOARD_SUFFIX}")


def _write_pages(trace: Trace, view: View, fmt: str, folder: Path) -> None:
    from talkerviz.flowchart.subpages import FIRST, pages_of
    from talkerviz.render.charts.markdown_page import render_page

    suffix = ".md" if fmt == "mermaid" else f".{fmt}"
    folder.mkdir(exist_ok=True)
    count = 0
    for page in pages_of(trace, view, suffix):
        file = str(folder / f"{page.name}{suffix}")
        write(file, lambda page=page: render_page(page) if fmt == "mermaid" else render_graph(page.graph, fmt))  # type: ignore[misc]
        count += 1
    console().print(f"{count:,} pages -> {folder / FIRST}{suffix}", highlight=False, soft_wrap=True)
