"""The files that the page, and the widget in notebooks, are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

_PLACE = re.compile(r"\{\{(\w+)\}\}")


def piece(name: str, package: str = "talkerviz.report.html") -> str:
    """A file of our own, of the page's or of another package's `static`."""
    return (files(package) / "static" / name).read_text(encoding="utf-8")


def vendored(name: str) -> str:
    """A file of somebody else's."""
    return (files(__package__) / "vendor" / name).read_text(encoding="utf-8")


def with_pieces(text: str, pieces: Mapping[str, str]) -> str:
    """A text with each `{{name}}` replaced: at once, so that nothing in a piece is taken for a place."""
    return _PLACE.sub(lambda place: pieces[place[1]], text)


def controls() -> dict[str, str]:
    """The flowchart and what stands above it, and what stands above the time line."""
    return {name: piece(f"{name}.html").rstrip("\n") for name in ("flowchart", "timeline")}
