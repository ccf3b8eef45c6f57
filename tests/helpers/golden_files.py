"""Golden files: what a renderer must give, byte for byte."""

from __future__ import annotations

import os

from repo_paths import GOLDEN

UPDATE = "TALKERVIZ_UPDATE_GOLDENS"


def check_golden(name: str, found: str) -> None:
    """Compare with `tests/golden/NAME`, or write it where TALKERVIZ_UPDATE_GOLDENS is set."""
    path = GOLDEN / name
    if os.environ.get(UPDATE):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), f"{path} differs: see CONTRIBUTING.md to refresh it"
