"""One-line descriptions of exceptions raised by the user's code."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

_OURS_AND_TORCH = (Path(__file__).parent, Path(torch.__file__).parent)


def cause_of(error: BaseException) -> str:
    """Format an exception's class and message, and the innermost line outside of torch and talkerviz."""
    message = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not any(file.is_relative_to(folder) for folder in _OURS_AND_TORCH):
            return f"{message} ({_short(file)}:{frame.lineno})"
    return message


def _short(file: Path) -> Path:
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file
