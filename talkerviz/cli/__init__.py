"""The command line: a file a command."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import pyarrow
import typer

from talkerviz.atomic_file import reason_of
from talkerviz.cli.streams import abandon_stdout, flush_stdout, is_stdout_error, prepare_streams, print_message
from talkerviz.version import __version__

__all__ = ["main"]

_STOPPED = 130  # as shells have it: 128 and the number of SIGINT

# The file of each, and what it is for, in the order of their use. Their own help is in the files, of which those that
# run models import much: seconds that nobody should wait for a list.
COMMANDS = {
    "trace": ("trace", "Run a model and record every module call."),
    "capture": ("capture", "Run a thinker, and keep what it gives the talker."),
    "speak": ("speak", "Speak into a WAV file, and time it."),
    "show": ("show", "Print a latency table."),
    "tree": ("show", "Print the call tree, what repeats folded."),
    "render": ("render", "Draw a trace, or write it for other programs."),
    "report": ("report", "Write a page with all of it: charts and tables."),
    "diff": ("diff", "Say where two runs differ."),
    "merge": ("merge", "Put the traces of several ranks together."),
    "query": ("query", "Ask many traces in SQL."),
    "presets": ("doctor", "List the talkers that can be built."),
    "doctor": ("doctor", "Say what can run here, and how fast."),
}


def _app_for(asked: str) -> typer.Typer:
    """The application of a command, or one that only lists them."""
    if asked in COMMANDS:
        found: typer.Typer = import_module(f"talkerviz.cli.{COMMANDS[asked][0]}").app
    else:
        from talkerviz.cli.options import new_app

        found = new_app()
        for name, (_, summary) in COMMANDS.items():
            found.command(name, help=summary)(lambda: None)
    found.callback(invoke_without_command=True)(_root)
    return found


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; anything the user can mend is one line on stderr and exit code 2."""
    prepare_streams()
    # Arrow's own pool keeps what it has freed: 50 MiB of the peak where a model lies beside a trace.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    sys.exit(_exit_code(sys.argv[1:] or ["--help"]))


def _exit_code(arguments: list[str]) -> int:
    try:
        code = _invoke(arguments)
        flush_stdout()
    except (typer.Abort, KeyboardInterrupt) as error:
        return _failed(f"stopped; {error}" if str(error) else "stopped", _STOPPED)
    except BrokenPipeError as error:
        # The reader of a pipe has what it wants, as `head` does.
        if error.filename is not None:
            return _failed(_line_of(error), 2)
        abandon_stdout()
        return 0
    except (OSError, ValueError) as error:
        return _failed(_line_of(error), 2)
    except (MemoryError, RecursionError) as error:
        why = "out of memory" if isinstance(error, MemoryError) else "calls nest too deeply for this"
        return _failed(f"{why}: ask for less of the trace, as with --depth, --module or --frame", 2)
    except Exception as error:
        # A usage error. Its class is click's or typer's own copy of it, by typer's version.
        if not hasattr(error, "format_message"):
            raise
        # Some versions of typer have pydantic say what is wrong.
        return _failed(str(error.format_message()).replace("Value error, ", ""), 2)
    # Typer makes an exit code of Ctrl-C.
    return _failed("stopped", _STOPPED) if code == _STOPPED else code


def _invoke(arguments: list[str]) -> int:
    try:
        code = _app_for(arguments[0])(arguments, standalone_mode=False)
    except SystemExit as stop:
        # Click and typer make exit code 1 of a broken pipe.
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        raise
    return code if isinstance(code, int) else 0


def _line_of(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = "stdout" if is_stdout_error(error) else error.filename
    return str(error) if where is None else f"{os.fsdecode(where)}: {reason_of(error)}"


def _failed(message: str, code: int) -> int:
    """Print a line on stderr, and return the exit code."""
    try:
        flush_stdout()
    except OSError:
        abandon_stdout()
    print_message(message)
    return code
