"""The command line's standard streams: closed ones, pipes whose reader is gone, encodings and terminal sizes."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from talkerviz.atomic_file import LeftoverWarning

_MIN_COLUMNS, _MAX_COLUMNS = 20, 10_000  # narrower tables show nothing; rich pads each line to the full width
_MAX_LINES = 10_000
# Errors of a write to stdout; they carry no file name.
_STDOUT_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EPIPE, errno.EBADF)
_show_by_default = warnings.showwarning


def prepare_streams() -> None:
    """Make the standard streams safe to use: reopen closed ones, replace what cannot be encoded, clamp sizes."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Takes the lowest free number, this one. Otherwise the first file that is opened would be stdout.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        # `print(file=None)` prints to stdout.
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8", errors="replace")  # noqa: SIM115
    _replace_unencodable(sys.stdout)
    _set_size("COLUMNS", _MIN_COLUMNS, _MAX_COLUMNS)
    _set_size("LINES", 1, _MAX_LINES)
    if warnings.showwarning is _show_by_default:
        warnings.showwarning = _show_warning


def print_message(text: str) -> None:
    """Print a line on stderr; ignore failures, as on a full disk, which must not end a run."""
    from talkerviz.render.escape import visible

    if sys.stderr is None:  # `print` would print to stdout
        return
    with suppress(OSError, ValueError):
        print(f"talkerviz: {visible(' '.join(text.split()))}", file=sys.stderr, flush=True)


def stdout_is_closed() -> bool:
    """Return whether the process was started without a stdout."""
    return sys.stdout is None


def flush_stdout() -> None:
    """Flush stdout, so that an error is raised here and not when the interpreter exits."""
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon_stdout() -> None:
    """Send buffered output to the null device: the interpreter flushes once more when it exits."""
    if sys.stdout is not None:
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def is_stdout_error(error: OSError) -> bool:
    """Return whether an error is of a write to stdout: other writers name their file."""
    return error.filename is None and error.errno in _STDOUT_ERRORS


def _replace_unencodable(stream: TextIO | None) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _set_size(name: str, least: int, most: int) -> None:
    """Clamp a terminal size in the environment; drop the variable if it holds no size."""
    text = os.environ.get(name)
    if text is None:
        return
    size = int(text[:9]) if text.isascii() and text.isdigit() else 0
    if size:
        os.environ[name] = str(min(max(size, least), most))
    else:
        del os.environ[name]


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Show the leftover of a killed run in one line, and other warnings as Python does."""
    if issubclass(category, LeftoverWarning):
        print_message(str(message))
    else:
        _show_by_default(message, category, *where, **more)
