"""The command line: a file a command."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from talkerviz.cli.app import app
from talkerviz.version import __version__

__all__ = ["app", "main"]

# Each with its file, as they are used, not as they are spelled.
_COMMANDS = {
    "trace": "trace",
    "capture": "capture",
    "speak": "speak",
    "show": "show",
    "tree": "show",
    "render": "render",
    "report": "report",
    "diff": "diff",
    "merge": "merge",
    "query": "query",
    "presets": "doctor",
    "doctor": "doctor",
}


def _load(asked: str) -> None:
    """The file of a command, or of all: those that run models import much that others do without."""
    for file in [_COMMANDS[asked]] if asked in _COMMANDS else [*_COMMANDS.values()]:
        import_module(f"talkerviz.cli.{file}")
    order = [*_COMMANDS]
    app.registered_commands.sort(key=lambda one: order.index(one.name or one.callback.__name__))  # type: ignore[union-attr]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; anything the user can mend is one line on stderr and exit code 2."""
    arguments = sys.argv[1:] or ["--help"]
    _load(arguments[0])
    try:
        code = app(arguments, standalone_mode=False)
    except typer.Abort:
        _fail("stopped; the calls recorded until then are kept", 130)
    except OSError as error:
        _fail(str(error) if error.filename is None else f"{error.filename}: {error.strerror}", 2)
    except ValueError as error:
        _fail(str(error), 2)
    except Exception as error:
        # A usage error. Its class is click's or typer's own copy of it, by typer's version.
        if not hasattr(error, "format_message"):
            raise
        _fail(str(error.format_message()), 2)
    sys.exit(code)


def _fail(message: str, code: int) -> NoReturn:
    print(f"talkerviz: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
