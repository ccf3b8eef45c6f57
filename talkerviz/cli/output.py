"""What commands print and write."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment
from rich.text import Text

from talkerviz.analysis.frame_latency import frame_summary
from talkerviz.analysis.stragglers import stragglers
from talkerviz.api import Trace
from talkerviz.atomic_file import descriptor_of, is_special, named_errors, write_bytes, write_text
from talkerviz.cli.streams import stdout_is_closed
from talkerviz.render.charts.graphviz import LayoutError
from talkerviz.render.escape import visible
from talkerviz.render.notes import headline, notes_on
from talkerviz.render.terminal.summary_table import render_table

_FILE_WIDTH = 240


class _TextConsole(Console):
    """A console that leaves it to the command line what a broken pipe means.

    Escape sequences and direction marks of models and files are shown, and not obeyed.
    """

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width)
        self.push_render_hook(_Visible())

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class _Visible(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(one) for one in renderables]


class _Escaped:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, to: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in to.render(self._inner, options):
            yield Segment(text if control else visible(text), style, control)


def console() -> Console:
    """Return the console on which tables are printed."""
    # rich takes 80 columns for a file or a pipe, too few for a table.
    terminal = _TextConsole()
    return terminal if terminal.is_terminal or "COLUMNS" in os.environ else _TextConsole(width=_FILE_WIDTH)


def print_headline(to: Console, trace: Trace) -> None:
    """How fast the frames came, where any were timed."""
    if summary := frame_summary(trace):
        to.print(Text(headline(summary)), soft_wrap=True)


def print_notes(to: Console, trace: Trace) -> None:
    """Below a table, what to know of its numbers."""
    for note in notes_on(trace):
        to.print(Text(note, style="dim"), soft_wrap=True)


def print_ranks(to: Console, trace: Trace, top: int | None) -> None:
    """How the ranks of a merged trace wait for each other."""
    found = stragglers(trace)
    to.print(render_table(found.ranks, "rank", None, to.width, "Ranks"))
    title = "Collectives, the mean wait of each rank"
    to.print(render_table(found.collectives, "collective", top, to.width, title))
    to.print(Text(found.sentence, style="bold"), soft_wrap=True)
    for note in (*found.notes, *notes_on(trace)):
        to.print(Text(note, style="dim"), soft_wrap=True)


def check_writable(*outputs: str | Path | None) -> None:
    """Raise ValueError before a long run if its result could not be written."""
    for output in outputs:
        if output is None or output == "-":
            continue
        path = Path(output)
        if (descriptor := descriptor_of(path)) is not None:
            with named_errors(path):
                os.fstat(descriptor)
            continue
        check_place(output)
        try:
            is_folder, there = stat.S_ISDIR(path.stat().st_mode), path
        except FileNotFoundError:
            is_folder, there = False, path.absolute().parent
        if is_folder:
            raise ValueError(f"{output or repr(output)}: is a directory: name a file")
        # In a folder without write permission an existing file is overwritten in place.
        if not os.access(there, os.W_OK):
            raise ValueError(f"{output}: permission denied")


def check_stdout(output: str) -> None:
    """Raise ValueError for an output to stdout where there is none."""
    if output == "-" and stdout_is_closed():
        raise ValueError("-o -: stdout is closed: name a file")


def check_no_terminal(output: str, fmt: str) -> None:
    """Raise ValueError where bytes would be written to a terminal."""
    check_stdout(output)
    if output == "-" and sys.stdout.isatty():
        raise ValueError(f"a terminal cannot show {fmt}: write it to a file with -o FILE")


def check_place(output: str | Path) -> None:
    """Raise ValueError where the folder in which an output is to be does not exist."""
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{output}: no such folder {folder}")


def check_folder(output: Path) -> None:
    """Raise ValueError where an output that is a folder could not be one."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file, not a folder")


def write(output: str, draw: Callable[[], bytes]) -> bytes:
    """Write a drawing atomically and return it; write its DOT beside it where it cannot be laid out."""
    check_stdout(output)
    try:
        drawn = draw()
    except LayoutError as error:
        if output == "-" or is_special(output):
            raise
        instead = Path(output).with_suffix(".dot")
        if instead.exists():
            raise ValueError(f"{error}; its DOT is not kept: there is a {instead}") from error
        write_text(instead, error.dot)
        raise ValueError(f"{error}; the DOT is in {instead}") from error
    if output == "-":
        if sys.stdout.isatty():
            drawn = visible(drawn.decode("utf-8", "backslashreplace")).encode()
        sys.stdout.flush()
        sys.stdout.buffer.write(drawn)
    else:
        write_bytes(output, drawn)
    return drawn
