"""`talkerviz render`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from talkerviz.cli.app import app
from talkerviz.cli.options import ArrowsAre, Depth, Format, MaxNodes, Phase, TracePath, check_format
from talkerviz.cli.output import check_writable, console, write
from talkerviz.graph.pages import FIRST, pages_of
from talkerviz.graph.view import View
from talkerviz.render.formats import Style, render, render_graph
from talkerviz.render.github import over_github_limits
from talkerviz.render.markdown import render_page
from talkerviz.trace import Trace


@app.command("render")
def render_command(
    path: TracePath,
    fmt: Annotated[str, Format],
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
) -> None:
    """Draw a trace."""
    check_format(fmt)
    nested = style is Style.nested
    given = {"--open": open_, "--close": close, "--edges": edges, "--max-nodes": max_nodes, "--pages": pages}
    for option, value in {**given, "--no-fold": not fold}.items():
        if value and not nested:
            raise ValueError(f"{option}: only --style nested has it, not {style.value}")
    if pages and output == "-":
        raise ValueError("--pages: name a folder with -o")
    check_writable(output)
    chosen = Trace.load(path).select(phase, frame, None if nested else depth, module)
    view = View(depth, tuple(open_ or ()), tuple(close or ()), max_nodes, edges.value if edges else None, fold)
    if pages:
        _write_pages(chosen, view, fmt, Path(output))
        return
    write(output, lambda: render(chosen, fmt, style, view))
    if fmt == "mermaid" and output != "-" and (note := over_github_limits(Path(output).read_text())):
        print(f"talkerviz: {output}: {note}", file=sys.stderr)


def _write_pages(trace: Trace, view: View, fmt: str, folder: Path) -> None:
    suffix = ".md" if fmt == "mermaid" else f".{fmt}"
    folder.mkdir(exist_ok=True)
    count = 0
    for page in pages_of(trace, view, suffix):
        file = str(folder / f"{page.name}{suffix}")
        write(file, lambda page=page: render_page(page) if fmt == "mermaid" else render_graph(page.graph, fmt))  # type: ignore[misc]
        count += 1
    console().print(f"{count:,} pages -> {folder / FIRST}{suffix}", highlight=False, soft_wrap=True)
