"""Console and tables of the terminal: width, visible escape sequences, broken pipes, table style."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment
from rich.table import Table

from talkerviz.render.escape import visible

_FILE_COLUMNS = 240  # all columns of the widest table; rich assumes 80 for a file or a pipe


class _TextConsole(Console):
    """Console that raises BrokenPipeError, where rich would exit the process.

    Escape sequences and direction marks in names from models and files are shown as codes, so that they cannot control
    the terminal.
    """

    def __init__(self, width: int | None = None, stderr: bool = False) -> None:
        super().__init__(width=width, stderr=stderr)
        self.push_render_hook(_Visible())

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class _Visible(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, to: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in to.render(self._inner, options):
            yield Segment(text if control else visible(text), style, control)


def console(stderr: bool = False) -> Console:
    """Return a console that prints to stdout, or to the cell of a notebook.

    Args:
        stderr: print to stderr.
    """
    terminal = _TextConsole(stderr=stderr)
    sized = terminal.is_terminal or terminal.is_jupyter or "COLUMNS" in os.environ
    return terminal if sized else _TextConsole(width=_FILE_COLUMNS, stderr=stderr)


def plain_table(title: str | None = None, caption: str | None = None) -> Table:
    """Make an empty table with a line below its header."""
    return Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        pad_edge=False,
    )


COLUMN_GAP = 3
"""Characters between two columns."""


def fitting_columns(
    widths: Mapping[str, int], unneeded: Sequence[str], width: int, kind: Callable[[str], str] = str
) -> list[str]:
    """Select the columns that fit into `width` characters, dropping those in `unneeded` one kind at a time."""
    names = list(widths)
    for dropped in unneeded:
        if sum(widths[name] + COLUMN_GAP for name in names) > width:
            names = [name for name in names if kind(name) != dropped]
    return names
