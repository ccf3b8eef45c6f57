"""Folders of the checkout that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
HELPERS = ROOT / "tests" / "helpers"
GOLDEN = ROOT / "tests" / "golden"
# Node projects, with the code of Mermaid, speedscope and Perfetto's page.
MERMAID = ROOT / "tests" / "mermaid"
VIEWERS = ROOT / "tests" / "viewers"
