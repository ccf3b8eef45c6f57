"""The command line: a file a command."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from talkerviz.version import __version__

__all__ = ["main"]

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
        from talkerviz.cli.app import new_app

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
    arguments = sys.argv[1:] or ["--help"]
    app = _app_for(arguments[0])
    try:
        code = app(arguments, standalone_mode=False)
    except typer.Abort as error:
        _fail(f"stopped; {error}" if str(error) else "stopped", 130)
    except OSError as error:
        _fail(str(error) if error.filename is None else f"{error.filename}: {error.strerror}", 2)
    except ValueError as error:
        _fail(str(error), 2)
    except Exception as error:
        # A usage error. Its class is click's or typer's own copy of it, by typer's version.
        if not hasattr(error, "format_message"):
            raise
        # Some versions of typer have pydantic say what is wrong.
        _fail(str(error.format_message()).replace("Value error, ", ""), 2)
    sys.exit(code)


def _fail(message: str, code: int) -> NoReturn:
    from talkerviz.render.escape import visible

    print(f"talkerviz: {visible(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)
