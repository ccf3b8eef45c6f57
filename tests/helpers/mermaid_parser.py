"""Mermaid's own parser, in Node."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from repo_paths import MERMAID

needs_parser = pytest.mark.skipif(
    not (MERMAID / "node_modules").is_dir() or not shutil.which("node"),
    reason="needs node and `npm ci --prefix tests/mermaid`",
)


def mermaid_errors(charts: list[str]) -> list[str]:
    """Return the real parser's error for each chart; empty for a valid one."""
    done = subprocess.run(
        ["node", "parse.mjs"], cwd=MERMAID, input=json.dumps(charts), capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found
