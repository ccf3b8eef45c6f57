"""The command line: one file per command."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from talkerviz.atomic_file import reason_of
from talkerviz.cli.app import PROGRAM, new_app
from talkerviz.cli.streams import abandon_stdout, flush_stdout, is_stdout_error, prepare_streams, print_message
from talkerviz.version import __version__

__all__ = ["main"]

_RUN = "run"
_EXIT_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
_COMPLETE = f"_{PROGRAM.upper()}_COMPLETE"
# The line to complete, in the variables of bash and of the other shells.
_COMPLETED_LINE = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")

# A program that runs once and makes a table or a picture leaves little garbage; with Python's default of 700 objects a
# tenth of its time are collections. This many objects take about 100 MB.
_OBJECTS_PER_COLLECTION = 1_000_000
# Commands that run a user's model, in which garbage is collected as anywhere else.
_RUN_MODELS = ("trace", "capture", "speak", "load", "doctor")

# The module and the summary of each command, in the order of their use. The full help is in the modules, some of which
# import much: seconds that nobody should wait for a list.
COMMANDS = {
    "run": ("run", "Run any program, and record the models that it calls."),
    "trace": ("trace", "Run a model and record every module call."),
    "capture": ("capture", "Run a thinker and save its outputs for the talker."),
    "speak": ("speak", "Speak into a WAV file and measure latency and speed."),
    "load": ("load", "Measure latency and speed of many streams at once."),
    "show": ("show", "Print a latency table."),
    "tree": ("show", "Print the call tree, with repeated modules folded."),
    "render": ("render", "Draw a trace as a chart, or export it to other formats."),
    "report": ("report", "Write an HTML report: charts, tables and notes."),
    "diff": ("diff", "Compare two traces."),
    "merge": ("merge", "Merge the traces of several ranks."),
    "query": ("query", "Query traces in SQL."),
    "presets": ("doctor", "List the built-in model sizes."),
    "doctor": ("doctor", "Report what can run on this machine, and how fast."),
}


def _app_for(name: str) -> typer.Typer:
    """Return the application with one command, or one that only lists all."""
    if name == _RUN:
        app: typer.Typer = import_module("talkerviz.cli.run").app
    elif name in COMMANDS:
        if name not in _RUN_MODELS:
            gc.set_threshold(_OBJECTS_PER_COLLECTION)
        import pyarrow

        # Arrow's own pool keeps what it has freed: 50 MiB of the peak where a model lies beside a trace.
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())
        app = import_module(f"talkerviz.cli.{COMMANDS[name][0]}").app
    else:
        app = new_app(summary="Run a speech talker, or any torch model, and see every module call.")
        for command, (_, summary) in COMMANDS.items():
            app.command(command, help=summary)(lambda: None)
    app.callback(invoke_without_command=True)(_root)
    return app


def _root(
    version: Annotated[bool, typer.Option("--version", metavar="", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; anything the user can mend is one line on stderr and exit code 2."""
    if sys.argv[1:2] != [_RUN]:  # the streams of a program that is run are its own
        prepare_streams()
    sys.exit(_exit_code(sys.argv[1:] or ["--help"]))


def _exit_code(arguments: list[str]) -> int:
    try:
        code = _invoke(arguments)
        flush_stdout()
    except (typer.Abort, KeyboardInterrupt) as error:
        return _fail(f"stopped; {error}" if str(error) else "stopped", _EXIT_INTERRUPTED)
    except BrokenPipeError as error:
        # The reader of a pipe has what it wants, as `head` does.
        if error.filename is not None:
            return _fail(_error_line(error), 2)
        abandon_stdout()
        return 0
    except (OSError, ValueError) as error:
        return _fail(_error_line(error), 2)
    except (MemoryError, RecursionError) as error:
        why = "out of memory" if isinstance(error, MemoryError) else "calls nest too deeply for this"
        return _fail(f"{why}: ask for less of the trace, as with --depth, --module or --frame", 2)
    except Exception as error:
        # A usage error. Its class is click's or typer's own copy of it, by typer's version.
        if not hasattr(error, "format_message"):
            raise
        # Some versions of typer have pydantic say what is wrong.
        message = str(error.format_message()).replace("Value error, ", "")
        context = getattr(error, "ctx", None)
        return _fail(f"{message.rstrip('.')}; see {context.command_path} --help" if context else message, 2)
    # Typer makes an exit code of Ctrl-C.
    return _fail("stopped", _EXIT_INTERRUPTED) if code == _EXIT_INTERRUPTED else code


def _invoke(arguments: list[str]) -> int:
    try:
        code = _app_for(_command_of(arguments))(arguments, prog_name=PROGRAM, standalone_mode=False)
    except SystemExit as stop:
        # Click and typer make exit code 1 of a broken pipe.
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        raise
    return code if isinstance(code, int) else 0


def _command_of(arguments: list[str]) -> str:
    """Return the first word, of the line to complete if a shell asks for completions."""
    if _COMPLETE in os.environ:
        line = next((os.environ[name] for name in _COMPLETED_LINE if name in os.environ), "")
        return [*line.split(), "", ""][1]
    return arguments[0]


def _error_line(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = "stdout" if is_stdout_error(error) else error.filename
    return str(error) if where is None else f"{os.fsdecode(where)}: {reason_of(error)}"


def _fail(message: str, code: int) -> int:
    """Print an error on stderr and return the exit code."""
    try:
        flush_stdout()
    except OSError:
        abandon_stdout()
    print_message(message)
    return code
