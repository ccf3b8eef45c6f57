"""The example workflow: its commands are ours, and do what they are there for."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from talkerviz.cli import main
from talkerviz.trace import Trace

FILE = Path(__file__).parents[1] / "examples" / "github-actions.yml"
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
    """What of a script is talkerviz's, in the folders that it goes to; gives the first exit code that is not 0."""
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


def timed(trace: Trace, times: int) -> Trace:
    """The same with times that are the same everywhere: nothing is to be measured here."""
    calls = trace.calls
    own = pd.array([1_000 * times] * len(calls), dtype="Int64")
    whole = pd.array(own * (1 + 2 * (calls["depth"] == 0).to_numpy()), dtype="Int64")
    return replace(trace, calls=calls.assign(host_self_ns=own, host_ns=whole))


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
