"""Nested charts drawn by the real Mermaid in a real browser, as a reader of the page sees them."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from chromium import BROWSER, PATIENCE_MS
from nasty_text import NASTY
from repo_paths import MERMAID
from sample_graph import graph_of, sample_diff, sample_graph, talker_graph

from talkerviz.flowchart.model import Graph
from talkerviz.render.charts.mermaid import render_mermaid

MERMAID_JS = MERMAID / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"
pytestmark = pytest.mark.skipif(
    BROWSER is None or not MERMAID_JS.exists(), reason="needs chromium and `npm ci --prefix tests/mermaid`"
)
PAGE = """<!doctype html><meta charset="utf-8"><script src="{script}"></script><pre id="said"></pre>
<script>
  const chart = {chart};
  mermaid.initialize({{ startOnLoad: false, theme: "{theme}", securityLevel: "strict" }});
  mermaid.render("drawn", chart).then(({{ svg }}) => {{
    const box = document.createElement("div");
    box.innerHTML = svg;
    const texts = [...box.querySelectorAll(".node, .cluster")].map((one) => [one.id, one.textContent]);
    document.getElementById("said").textContent = JSON.stringify(texts);
  }}).catch((error) => {{ document.getElementById("said").textContent = "failed: " + error; }});
</script>
"""


def drawn(graph: Graph, theme: str, folder: Path) -> dict[str, str]:
    """Return the text in each box and group of the picture, by id."""
    page = folder / "page.html"
    chart = json.dumps(render_mermaid(graph)).replace("<", "\\u003c")
    page.write_text(PAGE.format(script=MERMAID_JS.as_uri(), chart=chart, theme=theme), encoding="utf-8")
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_MS / 1000).stdout
    found = re.search(r'<pre id="said">(.*?)</pre>', dom, re.S)
    assert found
    said = html.unescape(found[1])
    assert said.startswith("["), said
    return {re.sub(r"^(drawn-)?flowchart-|-\d+$|^drawn-", "", one): text for one, text in json.loads(said)}


@pytest.mark.parametrize("theme", ["default", "dark"])
@pytest.mark.parametrize("make", [sample_graph, sample_diff, talker_graph])
def test_every_box_is_drawn_with_its_name(make: Callable[[], Graph], theme: str, tmp_path: Path) -> None:
    graph = make()
    texts = drawn(graph, theme, tmp_path)
    for box in graph.boxes:
        assert box.name[:20] in texts[box.id]


def test_nasty_names_are_drawn(tmp_path: Path) -> None:
    graph = graph_of(NASTY)
    texts = drawn(graph, "default", tmp_path)
    assert {box.id for box in graph.boxes} <= set(texts)
    assert any("<script>alert(1)</script>" in text for text in texts.values())
