"""A trace and the widget in marimo."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import PATIENCE_MS, needs_browser, running_browser, serving

pytest.importorskip("marimo", reason="pip install 'talkerviz[dev]'")

APP = """
import marimo
app = marimo.App()

@app.cell
def _():
    import marimo as mo
    import torch
    from torch import nn
    import talkerviz as tv
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))
    trace = tv.record(net, lambda: [net(torch.ones(2, 4)) for _ in range(2)], name="net")
    return mo, trace, tv

@app.cell
def _(trace):
    trace

@app.cell
def _(mo, trace, tv):
    explorer = mo.ui.anywidget(tv.explore(trace))
    explorer
    return (explorer,)

@app.cell
def _(explorer, mo):
    value, calls = explorer.value, explorer.widget.calls
    mo.md(f"chosen: {value['selected']}, calls: {len(calls)}, frame: {value['frame']}")
"""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where marimo shows the app."""
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    (tmp_path / "app.py").write_text(APP)
    run = [sys.executable, "-m", "marimo", "run", "app.py", "--headless", "--no-token", "--port"]
    with serving(lambda port: [*run, str(port)], tmp_path, "health") as found:
        yield found


@needs_browser
def test_a_click_reaches_python(address: str) -> None:
    # Two frames: whatever they took, the one shown first is 1, the typical one of those after the first.
    wrong: list[str] = []
    with running_browser() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 1700})
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.locator("img[alt=Flowchart]").wait_for()
        page.locator('#chart .node[aria-label^="net.0,"]').click()
        page.get_by_text("chosen: ['net.0'], calls: 2, frame: 1").wait_for()
        # Python is asked for the calls of another frame.
        page.locator("#frame-before").click()
        page.locator("#frame-says", has_text="5 calls").wait_for()
        page.get_by_text("chosen: ['net.0'], calls: 2, frame: 0").wait_for()
    assert wrong == []
