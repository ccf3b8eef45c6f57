"""What is left of a run that is killed, stopped or cut short."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from taps import any_tap, both_taps  # noqa: F401
from torch import nn

import talkerviz as tv
from talkerviz.record import recorder
from talkerviz.trace import TraceError
from talkerviz.trace.frame import log_frames

ENDLESS = """
import sys, torch, talkerviz as tv
from torch import nn

class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        for done in range(1, 10**9):
            self.inner(x)
            if done % 1000 == 0:
                print(done, flush=True)

model = Loop()
with tv.recording(model, file=sys.argv[1]):
    model(torch.zeros(2))
"""
BATCH = 16384  # calls


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The file that a killed run left, and how many calls it had made for certain."""
    folder = tmp_path_factory.mktemp("killed")
    path = folder / "run.parquet"
    (folder / "endless.py").write_text(ENDLESS)
    with subprocess.Popen([sys.executable, "endless.py", path], cwd=folder, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        done = 0
        while done < 5 * BATCH:
            done = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    assert not path.exists()
    return Path(f"{path}.partial"), done


def test_a_killed_run_loses_at_most_a_batch(partial: tuple[Path, int]) -> None:
    path, done = partial
    trace = tv.Trace.load(path)
    assert len(trace.calls) >= done - BATCH
    assert trace.calls["path"][:3].tolist() == ["model", "model.inner", "model.inner"]
    assert (trace.calls["parent"][1:] == 0).all()
    assert trace.calls["error"][0] == "unfinished"
    assert trace.calls["error"][1:].isna().all()
    assert trace.facts["unfinished"] is True
    inside = trace.calls["host_ns"][1:].sum()
    assert inside <= trace.calls["host_ns"][0]
    with pytest.raises(TraceError, match=r"run\.parquet: no such file; open .*run\.parquet\.partial, which a run left"):
        tv.Trace.load(path.with_suffix(""))


def test_a_killed_run_is_shown(partial: tuple[Path, int]) -> None:
    command = [sys.executable, "-c", "from talkerviz.cli import main; main()", "show", str(partial[0])]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "model.inner" in shown.stdout
    assert "The run was killed" in shown.stdout
    assert shown.stderr == ""


def test_cut_anywhere(partial: tuple[Path, int], tmp_path: Path) -> None:
    whole = partial[0].read_bytes()
    full = len(tv.Trace.load(partial[0]).calls)
    cut, rng = tmp_path / "cut.partial", random.Random(0)
    lengths = set()
    for size in [*range(0, 3000, 97), *(rng.randrange(len(whole)) for _ in range(25))]:
        cut.write_bytes(whole[:size])
        try:
            lengths.add(len(tv.Trace.load(cut).calls))
        except TraceError as error:
            assert str(error).startswith(f"{cut}: ")  # noqa: PT017
    assert max(lengths) < full
    assert len(lengths) >= 3


class Failing(nn.Module):
    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.before = nn.Identity()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.before(x)
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_an_exception_leaves_a_finished_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    model = nn.Sequential(nn.ReLU(), Failing(error))
    with pytest.raises(type(error)), tv.recording(model, file=path):
        model(torch.zeros(2))
    assert [file.name for file in tmp_path.iterdir()] == ["run.parquet"]
    calls = tv.Trace.load(path).calls
    assert calls["path"].tolist() == ["model", "model.0", "model.1", "model.1.before"]
    name = type(error).__name__
    assert calls["error"].fillna("").tolist() == [name, "", name, ""]


def test_in_a_file_and_in_memory_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU()))
    run = lambda: [model(torch.zeros(rows, 4)) for rows in range(1, 40)]  # noqa: E731
    monkeypatch.setattr(log_frames, "__defaults__", (25,))
    monkeypatch.setattr(recorder, "_BATCH", 7)
    in_file = tv.record(model, run, clock="none", file=tmp_path / "run.parquet")
    in_memory = tv.record(model, run, clock="none")
    assert in_file.calls.equals(in_memory.calls)
    assert in_file.modules == in_memory.modules


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    model = nn.ReLU()
    with pytest.raises(OSError, match="nosuch"), tv.recording(model, file=tmp_path / "nosuch" / "run.parquet"):
        pytest.fail("the run must not begin")
    assert tv.record(model, lambda: model(torch.zeros(1))).calls["path"].tolist() == ["model"]


@both_taps
def test_ctrl_c_at_any_moment(any_tap: str) -> None:  # noqa: F811
    """The trace is well formed wherever it comes, and the model's way of being called is what it was."""
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity(), nn.Identity()))
    model.register_module("never", Failing())
    original, x = nn.Module.__call__, torch.zeros(2)
    for pause in (0.0, 0.001, 0.003, 0.005, 0.01):
        for _ in range(4):
            started = threading.Event()

            def interrupt(pause: float = pause, started: threading.Event = started) -> None:
                started.wait()
                time.sleep(pause)
                os.kill(os.getpid(), signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt), tv.recording(model) as rec:  # noqa: PT012
                started.set()
                while True:
                    model[1](model[0](x))
            thread.join()
            assert nn.Module.__call__ is original
            calls = rec.trace.calls
            nested = calls[calls["parent"].notna()]
            parents = calls.loc[nested["parent"].to_numpy(dtype=int)]
            assert (parents["depth"].to_numpy() + 1 == nested["depth"].to_numpy()).all()
            assert (calls["host_ns"] >= 0).all()
            assert set(calls["error"].dropna()) <= {"KeyboardInterrupt", "unfinished"}


def test_a_forked_child_leaves_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_BATCH", 8)
    model = nn.Sequential(nn.Identity())
    path = tmp_path / "run.parquet"
    with tv.recording(model, file=path):
        for _ in range(5):
            model(torch.zeros(1))
        if (child := os.fork()) == 0:
            for _ in range(50):
                model(torch.zeros(1))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        for _ in range(5):
            model(torch.zeros(1))
    assert tv.Trace.load(path).calls["path"].tolist() == ["model", "model.0"] * 10
