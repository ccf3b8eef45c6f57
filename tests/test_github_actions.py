"""Workflows: the commands of the example do what they are there for; our own name files and texts that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixed_times import timed
from repo_paths import EXAMPLES, ROOT

from talkerviz.api import Trace
from talkerviz.cli import main
from talkerviz.version import __version__

FILE = EXAMPLES / "github-actions.yml"
OWN = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BENCH = """
import torch
from torch import nn

def model():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return net, lambda: net(torch.zeros(1, 2))
"""


def steps() -> list[dict[str, Any]]:
    workflow = yaml.safe_load(FILE.read_text())
    # YAML 1.1 takes `on` for a truth value; GitHub does not.
    assert set(workflow) == {"name", True, "permissions", "jobs"}
    (job,) = workflow["jobs"].values()
    assert set(job) == {"runs-on", "env", "steps"}
    found: list[dict[str, Any]] = job["steps"]
    assert all(("uses" in step) != ("run" in step) for step in found)
    assert all("@v" in step["uses"] for step in found if "uses" in step)
    return found


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> int:
    """Run a script's talkerviz commands in their folders, and return the first exit code that is not 0."""
    for line in script.splitlines():
        words = shlex.split(line)
        if words[0] == "cd":
            folder = folder / words[1]
        elif words[0] == "talkerviz":
            monkeypatch.chdir(folder)
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stop:
                main()
            if stop.value.code:
                return int(stop.value.code)
    return 0


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "bench", raising=False)
    (tmp_path / "before").mkdir()
    for folder in (tmp_path, tmp_path / "before"):
        (folder / "bench.py").write_text(BENCH)
    record, compare = (step["run"] for step in steps() if "talkerviz " in step.get("run", "") and "name" in step)
    assert run(monkeypatch, tmp_path, record) == 0
    trace = Trace.load(tmp_path / "before.parquet")
    assert trace.calls["run"].nunique() == 30
    assert Trace.load(tmp_path / "after.parquet").calls["path"].tolist() == trace.calls["path"].tolist()

    timed(trace, 1).save(tmp_path / "before.parquet")
    for times, code in ((1, 0), (2, 1)):
        timed(trace, times).save(tmp_path / "after.parquet")
        assert run(monkeypatch, tmp_path, compare) == code
        shown = (tmp_path / "diff.md").read_text()
        assert "model.0" in shown
        assert ("+100.0 %" in shown) == (code == 1)
    assert "slower by +100.0 %" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "bench")


def test_every_command_is_tried() -> None:
    commands = [line for step in steps() for line in step.get("run", "").splitlines() if "talkerviz" in line]
    assert [shlex.split(line)[0] for line in commands] == ["pip", "talkerviz", "talkerviz", "talkerviz"]


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["jobs"]
    return found


def scripts(file: Path) -> list[str]:
    return [step["run"] for job in jobs(file).values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.name)
def test_own_workflows(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in jobs(file).values():
        needs = job.get("needs", [])
        assert {*([needs] if isinstance(needs, str) else needs)} <= set(jobs(file))
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            # A major version, or the branch that an action names for this.
            assert re.fullmatch(r"[\w./-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))
            # Each value that a matrix is asked for, it has in each row.
            asked = set(re.findall(r"matrix\.(\w+)", str({**job, "strategy": None})))
            matrix = job.get("strategy", {}).get("matrix", {})
            assert asked <= {*matrix, *(key for row in matrix.get("include", []) for key in row)}
    for named in re.findall(r"(?:tests|\.ci|talkerviz)/[\w./*]*\w", file.read_text()):
        assert list(ROOT.glob(named)), named


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.name)
def test_scripts_of_own_workflows_are_bash(file: Path) -> None:
    for script in scripts(file):
        plain = re.sub(r"\$\{\{.*?\}\}", "x", script)
        subprocess.run(["bash", "-n"], input=plain, text=True, check=True)


def test_doctor_says_what_the_free_threaded_job_looks_for() -> None:
    (text,) = re.findall(r'grep -q "(.*?)"', "\n".join(scripts(ROOT / ".github" / "workflows" / "ci.yml")))
    assert text in (ROOT / "talkerviz" / "doctor.py").read_text()


def test_the_release_finds_the_version() -> None:
    found = re.findall(
        r"\$\((sed .*?version\.py)\)", "\n".join(scripts(ROOT / ".github" / "workflows" / "release.yml"))
    )
    assert len(found) == 2
    for command in found:
        printed = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == __version__
