"""`talkerviz render`: charts, tables and files for viewers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talkerviz.api import Trace
from talkerviz.cli.app import app
from talkerviz.cli.options import Format, TracePath, format_of, with_render_options
from talkerviz.cli.output import (
    check_folder,
    check_no_terminal,
    check_place,
    check_stdout,
    check_writable,
    print_written,
    write,
)
from talkerviz.cli.streams import print_message
from talkerviz.render.options import RenderOptions, option_flag
from talkerviz.render.registry import BINARY, DRAWN, check_options, render, render_graph, select
from talkerviz.render.viewers.common import TENSORBOARD_SUFFIX


@app.command("render")
@with_render_options()
def render_command(
    path: TracePath,
    options: RenderOptions,
    fmt: Annotated[str | None, Format] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="Output file, with --pages a folder; - for stdout.")
    ] = "-",
    pages: Annotated[bool, typer.Option("--pages", help="Draw the inside of each closed box on its own page.")] = False,
) -> None:
    """Draw a trace, or write it as a table, as a page, or for another program.

    The format is the ending of -o. A file that ends in .html is the page of `talkerviz report`, in one file; -f html is
    a table.
    """
    fmt = format_of(fmt, output)
    check_options(fmt, options, option_flag)
    if pages:
        _check_pages(fmt, options, output)
        check_folder(Path(output))
        check_place(output)
    else:
        check_writable(output)
    check_stdout(output)
    if fmt in BINARY:
        check_no_terminal(output, fmt)
    trace = Trace.load(path)
    if pages:
        _write_pages(trace, options, fmt, Path(output))
        return
    drawn = write(output, lambda: render(trace, fmt, options))
    if fmt == "mermaid":
        from talkerviz.render.charts.mermaid import over_github_limits

        if note := over_github_limits(drawn.decode()):
            print_message(f"{output}: {note}")
    if fmt == "tensorboard" and output != "-" and not output.endswith(TENSORBOARD_SUFFIX):
        print_message(f"{output}: TensorBoard finds only files that end in {TENSORBOARD_SUFFIX}")


def _check_pages(fmt: str, options: RenderOptions, output: str) -> None:
    if fmt not in DRAWN:
        raise ValueError(f"--pages: only pictures have it ({', '.join(DRAWN)}), not {fmt}")
    if options.style != "nested":
        raise ValueError(f"--pages: only --style nested has it, not {options.style}")
    if output == "-":
        raise ValueError("--pages: name a folder with -o")


def _write_pages(trace: Trace, options: RenderOptions, fmt: str, folder: Path) -> None:
    from dataclasses import replace

    from talkerviz.flowchart.subpages import FIRST, subpages
    from talkerviz.render.charts.markdown_page import render_page

    selected = select(trace, replace(options, depth=None))
    suffix = ".md" if fmt == "mermaid" else f".{fmt}"
    folder.mkdir(exist_ok=True)
    count = 0
    for page in subpages(selected, options.view, suffix):
        file = str(folder / f"{page.name}{suffix}")
        draw = lambda page=page: render_page(page) if fmt == "mermaid" else render_graph(page.graph, fmt)  # noqa: E731
        write(file, draw, report=False)
        count += 1
    print_written(f"{folder / FIRST}{suffix}", f"{count:,} pages")
