"""Asset files of the page and of the notebook widget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def piece(name: str, package: str = "talkerviz.report.html") -> str:
    """Read a file of a package's `static` folder."""
    return (files(package) / "static" / name).read_text(encoding="utf-8")


def vendored(name: str) -> str:
    """Read a third-party file."""
    return (files(__package__) / "vendor" / name).read_text(encoding="utf-8")


def with_pieces(text: str, pieces: Mapping[str, str]) -> str:
    """Replace each `{{name}}` in one pass, so that nothing in a piece is taken for a placeholder."""
    return _PLACEHOLDER.sub(lambda match: pieces[match[1]], text)


def controls() -> dict[str, str]:
    """Read the controls of the flowchart and of the timeline."""
    return {name: piece(f"{name}.html").rstrip("\n") for name in ("flowchart", "timeline")}
