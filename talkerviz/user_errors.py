"""What an exception of the user's own code says, in a line."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

_OURS_AND_TORCH = (Path(__file__).parent, Path(torch.__file__).parent)


def cause_of(error: BaseException) -> str:
    """Its class and message, and where it was raised: the innermost line that is neither torch's nor ours."""
    said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(folder) for folder in _OURS_AND_TORCH):
            return f"{said} ({_short(file)}:{frame.lineno})"
    return said


def _short(file: Path) -> Path:
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file
