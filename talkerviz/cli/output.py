"""Outputs of commands: checks before a run, and writing to a file or to stdout."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from talkerviz.analysis.run_stats import run_stats
from talkerviz.analysis.summary import summarise
from talkerviz.atomic_file import descriptor_of, is_special, named_errors, write_bytes, write_text
from talkerviz.cli.streams import stdout_is_closed
from talkerviz.render.charts.graphviz import LayoutError
from talkerviz.render.escape import visible
from talkerviz.render.terminal.console import console as console
from talkerviz.render.terminal.printing import print_headline as print_headline
from talkerviz.render.terminal.printing import print_notes as print_notes
from talkerviz.render.terminal.summary_table import render_table
from talkerviz.trace import TraceRecord

_SUMMARY_ROWS = 10  # of each table


def print_summary(to: Console, trace: TraceRecord, runs: int = 1) -> None:
    """Print a trace's time by phase, class and module.

    Args:
        to: console.
        trace: a trace with calls.
        runs: number of runs in it; their spread is printed if there are several.
    """
    for by in ("phase", "class", "module"):
        to.print(render_table(summarise(trace, by), by, _SUMMARY_ROWS, to.width))
    if runs > 1:
        over = run_stats(trace, "phase")
        to.print(render_table(over, "phase", _SUMMARY_ROWS, to.width, f"Time by phase over {runs} runs"))
    print_headline(to, trace)
    print_notes(to, trace)


def check_writable(*outputs: str | Path | None) -> None:
    """Raise ValueError if an output cannot be written, before a long run."""
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
    """Raise ValueError for an output to a closed stdout."""
    if output == "-" and stdout_is_closed():
        raise ValueError("-o -: stdout is closed: name a file")


def check_no_terminal(output: str, fmt: str) -> None:
    """Raise ValueError if binary output would go to a terminal."""
    check_stdout(output)
    if output == "-" and sys.stdout.isatty():
        raise ValueError(f"a terminal cannot show {fmt}: write it to a file with -o FILE")


def check_place(output: str | Path) -> None:
    """Raise ValueError if the folder of an output does not exist."""
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{output}: no such folder {folder}")


def check_folder(output: Path) -> None:
    """Raise ValueError if the output folder is a file."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file, not a folder")


def print_written(path: str | Path, content: str = "") -> None:
    """Print on stderr the file that a command wrote, and what is in it."""
    line = f"wrote {path}" + (f": {content}" if content else "")
    with suppress(OSError, ValueError):  # a full disk behind stderr must not end the command
        print(visible(" ".join(line.split("\n"))), file=sys.stderr, flush=True)


def write(output: str, draw: Callable[[], bytes], report: bool = True) -> bytes:
    """Write a drawing atomically and return it; if it cannot be laid out, write its DOT instead.

    Args:
        output: name of the file; `-` for stdout.
        draw: function that makes the drawing.
        report: print the file's name on stderr.

    Raises:
        LayoutError: Graphviz failed, and the output is stdout or a device.
        ValueError: Graphviz failed; the message names the file with the DOT.
    """
    check_stdout(output)
    try:
        drawn = draw()
    except LayoutError as error:
        if output == "-" or is_special(output):
            raise
        dot_file = Path(output).with_suffix(".dot")
        if dot_file.exists():
            raise ValueError(f"{error}; its DOT is not kept: {dot_file} exists") from error
        write_text(dot_file, error.dot)
        raise ValueError(f"{error}; the DOT is in {dot_file}") from error
    if output == "-":
        if sys.stdout.isatty():
            drawn = visible(drawn.decode("utf-8", "backslashreplace")).encode()
        sys.stdout.flush()
        sys.stdout.buffer.write(drawn)
    else:
        write_bytes(output, drawn)
        if report and descriptor_of(Path(output)) is None:
            print_written(output)
    return drawn
