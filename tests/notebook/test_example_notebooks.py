"""The example notebooks: they run, as files and in JupyterLab itself."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import PATIENCE_MS, needs_browser, running_browser, serving
from repo_paths import EXAMPLES

nbclient = pytest.importorskip("nbclient", reason="pip install 'talkerviz[dev]'")
nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN = {
    "first_look": {"text/html", "text/markdown", "image/svg+xml", WIDGET},
    "two_runs": {"text/html", "image/svg+xml"},
    "your_own_model": {"text/html", "text/markdown", "image/svg+xml", WIDGET},
}


@pytest.fixture
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to work in; what Jupyter keeps of its own is in there too."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return tmp_path


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, jupyter: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=PATIENCE_MS // 1000, kernel_name="python3", resources={"metadata": {"path": str(jupyter)}}
    ).execute()
    outputs = outputs_of(notebook)
    assert {kind for output in outputs for kind in output.get("data", {})} >= SHOWN[path.stem]
    texts = "".join(output.get("text", "") + output.get("data", {}).get("text/html", "") for output in outputs)
    assert "There is no" not in texts
    assert [output for output in outputs if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_as_it_is_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 300_000
    assert "widgets" not in notebook.metadata  # the state of widgets is large, and GitHub does not show it
    text = path.read_text()
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", text)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.source.endswith("trace"))


def test_all_are_tested() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(SHOWN)


@pytest.fixture
def lab(jupyter: Path) -> Iterator[str]:
    """Return the address of a JupyterLab that runs in the folder."""
    if shutil.which("jupyter-lab", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("pip install 'talkerviz[notebook]'")
    options = ["--no-browser", "--allow-root", "--ServerApp.port_retries=0"]
    options += ["--IdentityProvider.token=t", f"--ServerApp.root_dir={jupyter}", "--LabApp.news_url=None"]
    run = [sys.executable, "-m", "jupyterlab", *options]
    with serving(lambda port: [*run, f"--port={port}"], jupyter, "api", {**os.environ, "NO_COLOR": "1"}) as found:
        yield found


@needs_browser
def test_in_jupyterlab_a_click_reaches_python_and_back(lab: str, jupyter: Path) -> None:
    cells = [
        "import torch\nfrom torch import nn\nimport talkerviz as tv\n%load_ext talkerviz",
        "net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))",
        "%%talkertrace\nfor _ in range(3):\n    y = net(torch.ones(2, 4))",
        "explorer = tv.explore(trace)\nexplorer",
        "print(explorer.selected, explorer.phase, len(explorer.calls))\nexplorer.selected = ['net.1.1']",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, jupyter / "net.ipynb")
    wrong: list[str] = []
    with running_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith((lab, "blob:", "data:")) else wrong.append(request.url),
        )
        page.goto(f"{lab}/lab/tree/net.ipynb?token=t&reset")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        page.locator("#chart .node").first.wait_for()
        assert page.locator(".jp-OutputArea-output img[alt=Flowchart]").evaluate("image => image.naturalWidth") > 100
        # Once the last cell has run, whose choice would take the place of the click's.
        page.locator('#chart .node.chosen[aria-label^="net.1.1,"]').wait_for()
        page.locator('#chart .node[aria-label^="net.0,"]').click()
        page.locator("#chosen", has_text="net.0 in forward").wait_for()
        last = page.locator(".jp-CodeCell").last
        last.locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        last.locator(".jp-OutputArea-output", has_text="['net.0'] forward 3").wait_for()
        # And what that cell has chosen then.
        page.locator('#chart .node.chosen[aria-label^="net.1.1,"]').wait_for()
    assert wrong == []
