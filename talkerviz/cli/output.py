"""What commands print and write."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment
from rich.text import Text

from talkerviz.disk import writing
from talkerviz.render.escape import visible
from talkerviz.render.headline import headline
from talkerviz.render.layout import LayoutError
from talkerviz.render.notes import notes_on
from talkerviz.render.table import render_table
from talkerviz.trace import Trace
from talkerviz.trace.frames import frame_summary
from talkerviz.trace.stragglers import stragglers

_FILE_WIDTH = 240


class _Visible(RenderHook):
    """Escapes what models and files could send to the terminal, in all that is printed."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(one) for one in renderables]


class _Escaped:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, to: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in to.render(self._inner, options):
            yield Segment(text if control else visible(text), style, control)


def console() -> Console:
    """Where tables are printed; escape sequences from models and files are shown, and not obeyed."""
    # rich takes 80 columns for a file or a pipe, too few for a table.
    found = Console()
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found = Console(width=_FILE_WIDTH)
    found.push_render_hook(_Visible())
    return found


def say(text: str) -> None:
    """Print a line of ours on stderr."""
    print(f"talkerviz: {visible(text)}", file=sys.stderr)


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
    """Say so before a long run if its result could not be kept."""
    for output in outputs:
        if output is None or output == "-":
            continue
        folder = check_place(output)
        if Path(output).is_dir():
            raise ValueError(f"{output}: a folder is there; name a file")
        if not os.access(output if Path(output).exists() else folder, os.W_OK):
            raise ValueError(f"{output}: is not yours to write to")


def check_no_terminal(output: str, fmt: str) -> None:
    """Say so where bytes would be written to a terminal."""
    if output == "-" and sys.stdout.isatty():
        raise ValueError(f"a terminal cannot show {fmt}: write it to a file with -o FILE")


def check_place(output: str | Path) -> Path:
    """The folder in which an output is to be. Raises ValueError where it is not there."""
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{output}: no such folder {folder}")
    return folder


def check_folder(output: Path) -> None:
    """Say so where an output that is a folder could not be one."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: a file is there, not a folder")


def write(output: str, draw: Callable[[], bytes]) -> bytes:
    """Write a drawing, and give it; where it cannot be laid out, write what was to be laid out."""
    try:
        drawn = draw()
    except LayoutError as error:
        if output == "-":
            raise
        instead = Path(output).with_suffix(".dot")
        instead.write_text(error.dot, encoding="utf-8")
        raise ValueError(f"{error}; the DOT is in {instead}") from error
    if output == "-":
        if sys.stdout.isatty():
            drawn = visible(drawn.decode("utf-8", "backslashreplace")).encode()
        sys.stdout.buffer.write(drawn)
    else:
        with writing(Path(output)):
            Path(output).write_bytes(drawn)
    return drawn
