"""Lay out DOT with the system's `dot`, or with graphviz-pure, which comes with this package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


class RenderError(ValueError):
    """A picture that cannot be made; the message says why and what to do."""


def lay_out(dot: str, fmt: str) -> bytes:
    """DOT to `svg`, `png` or `pdf`.

    Raises:
        RenderError: no layout program is there, it cannot make this format, or it failed.
    """
    system = shutil.which("dot")
    program = system or _graphviz_pure()
    if program is None:
        raise RenderError(f"{fmt} needs Graphviz: install it (apt-get install graphviz), or write -f dot")
    if not system and fmt == "pdf":
        raise RenderError("pdf needs the system's Graphviz (apt-get install graphviz); svg and png do not")
    done = subprocess.run([program, f"-T{fmt}"], input=dot.encode(), capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise RenderError(f"{program} could not draw the {fmt}: {reason[-1] if reason else 'no output'}")
    return done.stdout


def _graphviz_pure() -> str | None:
    # Beside this Python first: the environment need not be active.
    beside = Path(sys.executable).parent
    return shutil.which("graphviz-pure", path=str(beside)) or shutil.which("graphviz-pure")
