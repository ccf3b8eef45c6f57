"""Processes forked from this one: they need not import torch again, which takes seconds."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO


@contextmanager
def forked(work: Callable[[IO[str]], object]) -> Iterator[tuple[int, IO[str]]]:
    """Run a function in a child process that is killed at the end of the block; gives its id and what it writes.

    The child gets the writing end of a pipe, line-buffered; its traceback goes there too.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w", buffering=1) as out:
            try:
                work(out)
            except BaseException:
                traceback.print_exc(file=out)
        os._exit(0)  # nothing of pytest's is to run here
    os.close(writing)
    try:
        with os.fdopen(reading) as output:
            yield child, output
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)
