"""Errors of writing that say where: that of a full disk knows no file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Within it an OSError without a file is one of this file or folder."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, reason_of(error), str(place)) from error


def reason_of(error: OSError) -> str:
    """Why, without where."""
    return os.strerror(error.errno) if error.errno else str(error)
