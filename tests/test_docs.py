"""Pages of docs/: they build, and their commands do what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import talkerviz
from doc_pages import DOCS, PAGES, Fence, commands, fences, is_shown
from fixed_times import timed
from tiny_omni import tiny_omni
from tiny_processor import save_tiny_processor, write_picture, write_sound

pytest.importorskip("IPython", reason="pip install 'talkerviz[notebook]'")
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from talkerviz.api import Trace
from talkerviz.cli import COMMANDS
from talkerviz.trace.schema import CALLS

ROOT = DOCS.parent
# The commands in blocks of kind `sh`, and why they are not run.
INSTALLS, STAYS, ANOTHER_FOLDER = "installs from the network", "runs until it is stopped", "leaves the test's folder"
SET_UP = {
    "python3 -m venv .venv && .venv/bin/pip install -q torch==2.13.0 .": INSTALLS,
    "source .venv/bin/activate": "of that environment",
}
NOT_RUN = {
    "index.md": SET_UP,
    "tutorial.md": {
        **SET_UP,
        "mkdir ../first-look && cd ../first-look": ANOTHER_FOLDER,
        "export OMP_NUM_THREADS=1": "of that shell; so it is here",
    },
    "guides/notebooks.md": {"marimo run app.py": STAYS, "jupyter lab examples/first_look.ipynb": STAYS},
    "guides/servers.md": {
        "talkerviz run --signal USR2 --for 5s -o server.parquet examples/server_program.py --port 8000 &": STAYS,
        "kill -USR2 $!": "of that server",
    },
    "guides/speak.md": {
        f"talkerviz speak --checkpoint Qwen3-Omni --inputs inputs.safetensors -o - | {reader}": "needs a checkpoint"
        for reader in ("aplay", "ffmpeg -i - speech.mp3")
    },
    "guides/viewers.md": {
        "pip install ai-edge-model-explorer": INSTALLS,
        "model-explorer explorer.json": STAYS,
        "pip install tensorboard torch-tb-profiler": INSTALLS,
        "tensorboard --logdir logs": STAYS,
        "nsys profile -t cuda,nvtx talkerviz trace --nvtx --no-flow": "needs Nsight Systems and a GPU",
    },
}
# Traces that a page holds a gate against, and how slow they are here: nothing is to be measured in a test.
SLOW = {"now.parquet": 1, "wider.parquet": 4, "before.parquet": 1, "after.parquet": 4}


class Reader:
    """Does what a page says, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capfd = folder, monkeypatch, capfd
        self.shell: InteractiveShell | None = None
        self.printed = ""

    def follow(self, fence: Fence) -> None:
        if fence.title:
            file = self.folder / fence.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(fence.text, encoding="utf-8")
        elif fence.language == "python":
            self.printed = self.run_cell(fence)
        elif fence.language in ("console", "bash"):
            for command in commands(fence):
                code, printed = self.run(command.text)
                assert code == command.code, f"line {fence.line}: {command.text}: exit {code}\n{printed}"
                missing = [line for line in command.shown if not is_shown(line, printed)]
                assert not missing, f"line {fence.line}: {command.text}: does not print\n{missing}\nbut\n{printed}"
        elif fence.language == "text":
            missing = [line for line in fence.text.splitlines() if line and not is_shown(line, self.printed)]
            assert not missing, f"line {fence.line}: the Python above does not print\n{missing}\nbut\n{self.printed}"
        else:
            assert fence.language == "sh", f"line {fence.line}: a block of kind {fence.language!r}"

    def run(self, command: str) -> tuple[int, str]:
        """Return the exit code, and what was printed."""
        # As a shell does with words that are not quoted.
        words = [
            word
            for raw in shlex.split(command, posix=False)
            for word in (sorted(map(str, Path().glob(raw))) if "*" in raw and raw[0] not in "'\"" else shlex.split(raw))
        ]
        self.capfd.readouterr()
        if words[0] == "talkerviz":
            code = talkerviz(self.monkeypatch, *words[1:])
            written = words[words.index("-o") + 1] if "-o" in words else ""
            if words[1] == "trace" and written in SLOW:
                timed(Trace.load(written), SLOW[written]).save(written)
        elif words[0] == "pytest":
            self.forget()
            code = int(pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", *words[1:]]))
        else:
            code = subprocess.run(["bash", "-c", command], check=False).returncode
        shown = self.capfd.readouterr()
        return code, shown.out + shown.err

    def forget(self) -> None:
        """Forget imported files of the page, as another process would."""
        for name, module in [*sys.modules.items()]:
            if (getattr(module, "__file__", None) or "").startswith(f"{self.folder}{os.sep}"):
                del sys.modules[name]

    def run_cell(self, fence: Fence) -> str:
        self.shell = self.shell or InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
        with capture_output() as shown:
            result = self.shell.run_cell(fence.text, store_history=False)
        error = result.error_before_exec or result.error_in_exec
        assert error is None, f"line {fence.line}: {error!r}"
        return shown.stdout + shown.stderr


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Reader]:
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # pages show what a CPU gives
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # IPython puts its own there
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "displayhook", sys.displayhook)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    made = Reader(tmp_path, monkeypatch, capfd)
    yield made
    made.forget()
    InteractiveShell.clear_instance()


def prepare_checkpoint(folder: Path) -> None:
    """Create the files that the page on checkpoints assumes."""
    model = tiny_omni()
    model.save_pretrained(folder / "Qwen3-Omni")
    save_tiny_processor(folder / "Qwen3-Omni", model.config)
    write_sound(folder / "question.wav")
    write_picture(folder / "cat.png")


PREPARED = {"guides/checkpoint.md": prepare_checkpoint}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says(page: str, reader: Reader) -> None:
    PREPARED.get(page, lambda folder: None)(reader.folder)
    for fence in fences(page):
        reader.follow(fence)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("decode  315  18.8 ms  19.9 %", True),
        ("decode  315  …", True),
        ("…", True),
        ("decode  316  18.8 ms  19.9 %", False),
        ("decode  315  18.8 %  19.9 %", False),
        ("decode  315  18.8 ms", False),
        ("prefill …", False),
    ],
)
def test_what_counts_as_shown(line: str, shown: bool) -> None:
    assert is_shown(line, "phase  calls\n decode   315   1,204 µs    3 % \n") == shown


def test_columns_of_the_trace_file() -> None:
    text = (DOCS / "reference" / "trace-file.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \|", text, re.M)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == CALLS.names


def test_the_tests_that_hold_what_is_guaranteed_are_there() -> None:
    named = re.findall(r"tests/[\w/]+\.py", (DOCS / "explanation" / "guarantees.md").read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_what_is_not_run() -> None:
    found = {
        page: [command.text for fence in fences(page) if fence.language == "sh" for command in commands(fence)]
        for page in PAGES
    }
    assert {page: texts for page, texts in found.items() if texts} == {
        page: [*texts] for page, texts in NOT_RUN.items()
    }


def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]*"', html) == []
        assert re.findall(r'<link[^>]* rel="stylesheet"[^>]* href="(?:https?:)?//[^"]*"', html) == []
    # Every option of every command is on its page.
    commands = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"talkerviz {name}" not in commands] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *(f"docs/{page}" for page in PAGES)])
def test_links_lead_to_files_and_headings(name: str) -> None:
    file = ROOT / name
    text = re.sub(r"^( *)```.*?^\1```$", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (file.parent / path).resolve() if path else file
        assert linked.exists(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{name}: {target}"


def test_every_path_of_where_to_find_what_exists() -> None:
    text = (DOCS / "explanation" / "where-to-find.md").read_text(encoding="utf-8")
    named = re.findall(r"`(talkerviz/[\w/]+\.\w+)`", text)
    assert len(named) >= 10
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_path_in_contributing_exists() -> None:
    text = re.sub(r"^( *)```.*?^\1```$", "", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    named = re.findall(r"`((?:talkerviz|tests|docs|reports|benchmarks)/[\w./]+\.\w+)`", text)
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []


class TestReadme:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def test_it_is_short(self) -> None:
        assert len(self.text.encode()) <= 12 * 1024

    def test_its_figures_are_those_of_the_benchmarks(self) -> None:
        overhead = _table(ROOT / "reports/benchmarks/overhead.md")
        rows = re.findall(r"(?:untraced|same): ([^|]+) \| \*\*([\d.]+)×\*\* \| ([\d.]+)×", self.text)
        measured = {row["row"]: (row["**talkerviz, CPU**"].strip("*"), row["torch.profiler, CPU"]) for row in overhead}
        assert len(rows) == 3
        for name, ours, profiler in rows:
            assert measured[name] == (ours, profiler)
        # The worst comes first.
        assert rows[0][1] == max((ours for ours, _ in measured.values()), key=float)

        drawing = {row["tool"]: row for row in _table(ROOT / "reports/benchmarks/render.md", "tool")}
        times = re.search(r"^\| \[Time to a finished SVG.*$", self.text, re.M)
        boxes = re.search(r"^\| Boxes on it.*$", self.text, re.M)
        assert times
        assert boxes
        for name in ("talkerviz, SVG", "torchview, SVG", "torchlens, SVG"):
            row = drawing[name]
            assert f"{row['ratio'].strip('*')}×" in times[0], name
            assert f"{row['boxes']}, {row['with twice the layers']}" in boxes[0], name

    def test_its_python_prints_its_table(self, reader: Reader) -> None:
        code, shown = (
            re.search(rf"^```{language}\n(.*?)^```$", self.text, re.M | re.S)[1]  # type: ignore[index]
            for language in ("python", "text")
        )
        reader.monkeypatch.syspath_prepend(ROOT)
        prepared = (
            "from transformers import Qwen3Config, Qwen3ForCausalLM\nfrom examples.transformers_models import qwen3\n"
            "import torch\nnet, x = qwen3()[0], torch.arange(24)[None]\n"
        )
        printed = reader.run_cell(Fence("python", None, prepared + code, 0))
        for line in (line.split() for line in shown.splitlines() if line.strip("… ─")):
            assert any(printed_line.split()[:2] == line[:2] for printed_line in printed.splitlines()), line


def _table(file: Path, first: str = "row") -> list[dict[str, str]]:
    """Return the rows of the first table of a report whose first column has this name."""
    lines = file.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    end = next(number for number, line in enumerate(lines[start:]) if not line.startswith("|"))
    names, _, *rows = cells[:end]
    return [dict(zip(names, row, strict=True)) for row in rows]
