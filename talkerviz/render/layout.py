"""Lay out DOT with the system's `dot`, or with graphviz-pure, which comes with this package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

LAYOUTS = ("svg", "png", "pdf")
"""What can be made of DOT."""


class RenderError(ValueError):
    """A picture that cannot be made; the message says why and what to do."""


class LayoutError(RenderError):
    """DOT that could not be laid out.

    Attributes:
        dot: the DOT.
    """

    def __init__(self, message: str, dot: str) -> None:
        super().__init__(message)
        self.dot = dot


def lay_out(dot: str, fmt: str) -> bytes:
    """DOT to one of `LAYOUTS`.

    Raises:
        LayoutError: no layout program is there, it cannot make this format, or it failed.
    """
    system = shutil.which("dot")
    program = system or _graphviz_pure()
    if program is None:
        raise LayoutError(f"{fmt} needs Graphviz: install it (apt-get install graphviz), or write -f dot", dot)
    if not system and fmt == "pdf":
        raise LayoutError("pdf needs the system's Graphviz (apt-get install graphviz); svg and png do not", dot)
    done = subprocess.run([program, f"-T{fmt}"], input=dot.encode(), capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise LayoutError(f"{program} could not draw the {fmt}: {reason[-1] if reason else 'no output'}", dot)
    return done.stdout


def _graphviz_pure() -> str | None:
    # Beside this Python first: the environment need not be active.
    beside = Path(sys.executable).parent
    return shutil.which("graphviz-pure", path=str(beside)) or shutil.which("graphviz-pure")
