"""Programs that draw DOT, and what is in their SVG."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ENGINES = [
    name for name in ("dot", "graphviz-pure") if shutil.which(name) or (Path(sys.executable).parent / name).exists()
]


def drawn(engine: str, dot: str) -> tuple[dict[str, str], set[str]]:
    """Titles of nodes and of edges in the SVG that an engine draws."""
    program = shutil.which(engine) or str(Path(sys.executable).parent / engine)
    done = subprocess.run([program, "-Tsvg"], input=dot.encode(), capture_output=True, check=True)
    titles: dict[str, dict[str, str]] = {"node": {}, "edge": {}}
    for group in ElementTree.fromstring(done.stdout).iter("{http://www.w3.org/2000/svg}g"):
        kind = group.get("class", "")
        if kind in titles:
            title = group.findtext("{http://www.w3.org/2000/svg}title", "")
            text = "".join(part.text or "" for part in group.iter("{http://www.w3.org/2000/svg}text"))
            titles[kind][title] = text
    # An edge that is given the sides of its boxes says so: n5:e->n6:w.
    return titles["node"], {re.sub(r":[ew]", "", title) for title in titles["edge"]}
