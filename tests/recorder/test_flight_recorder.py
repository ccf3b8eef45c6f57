"""The flight recorder: files of late frames, the module that was slow, bounded memory."""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Capture, talkerviz
from taps import every_way
from torch import nn

import talkerviz as tv

X = torch.ones(1, 4)
LATE_S = 0.4  # several times what a loaded machine adds to a frame


class Sleeper(nn.Module):
    """Sleeps in the frames that it is told to."""

    def __init__(self, late: set[int]) -> None:
        super().__init__()
        self.late, self.frame = late, -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.frame += 1
        if self.frame in self.late:
            time.sleep(LATE_S)
        return x


def writers_are_done(rec: Any) -> None:
    for writer in rec._flight._writers:
        writer.join()


@every_way
@pytest.mark.parametrize("found", [False, True])
def test_a_late_frame_is_kept_with_its_neighbours_and_the_slow_module_named(
    any_tap: str, found: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Sleeper({20, 40}), nn.Linear(4, 4))
    caplog.set_level(logging.WARNING, "talkerviz")
    with tv.flight_recorder(
        None if found else net, name="net", deadline_ms=LATE_S * 900, keep=2, file=tmp_path / "a.parquet"
    ) as rec:
        for frame in range(60):
            net(X)
            if frame == 30:
                writers_are_done(rec)
    assert [(late.frame, late.module) for late in rec.late] == [(20, "net.1"), (40, "net.1")]
    assert all(late.module_ns > LATE_S * 9e8 > late.usual_ns for late in rec.late)
    assert [line.partition(" took")[0] for line in caplog.messages] == ["frame 20", "frame 40"]
    trace = tv.Trace.load(tmp_path / "a.late40.parquet")
    assert trace.calls["frame"].unique().tolist() == [38, 39, 40, 41, 42]
    assert trace.calls["path"].tolist() == ["net", "net.0", "net.1", "net.2"] * 5
    assert not trace.calls["error"].notna().any()
    # Memory has the last frames alone.
    assert rec.trace.calls["frame"].nunique() < 40
    assert rec.trace.calls["frame"].max() == 59


def test_a_frame_of_the_program_is_late_outside_modules(tmp_path: Path) -> None:
    net = nn.Linear(4, 4)
    with tv.flight_recorder(net, slower_than=50, keep=1, file=tmp_path / "a.parquet") as rec:
        for frame in range(20):
            with rec.frame():
                net(X)
                time.sleep(LATE_S if frame == 15 else 0.001)
            time.sleep(0.001)
    assert [(late.frame, late.module) for late in rec.late] == [(15, "the code outside modules")]


class NeedsLock(nn.Module):
    """Takes a lock of the program in each pass."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__()
        self.lock = lock

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return x


def test_a_module_that_waits_for_another_thread_is_found(tmp_path: Path) -> None:
    lock = threading.Lock()
    net = nn.Sequential(nn.Linear(4, 4), NeedsLock(lock), nn.Linear(4, 4))
    disturb, holds = threading.Event(), threading.Event()

    def disturber() -> None:
        disturb.wait()
        with lock:
            holds.set()
            time.sleep(LATE_S)

    thread = threading.Thread(target=disturber)
    thread.start()
    with tv.flight_recorder(net, name="net", deadline_ms=LATE_S * 900, keep=1, file=tmp_path / "a.parquet") as rec:
        for frame in range(20):
            if frame == 10:
                disturb.set()
                holds.wait()
            net(X)
    thread.join()
    assert [(late.frame, late.module) for late in rec.late] == [(10, "net.1")]


def test_another_thread_that_holds_the_interpreter_is_found(tmp_path: Path) -> None:
    # A regular expression runs in C and does not release the interpreter; this one backtracks for LATE_S or more.
    length, took = 16, 0.0
    while took < LATE_S:
        length += 1
        began = time.thread_time()  # on a loaded machine a frame takes longer, but not less
        re.match(r"(a+)+b", "a" * length)
        took = time.thread_time() - began
    net = nn.Linear(4, 4)
    disturb, begins, frames_before = threading.Event(), threading.Event(), 10

    def disturber() -> None:
        disturb.wait()
        begins.set()
        re.match(r"(a+)+b", "a" * length)

    thread = threading.Thread(target=disturber)
    thread.start()
    with tv.flight_recorder(net, deadline_ms=took * 500, keep=1, file=tmp_path / "a.parquet") as rec:
        for _ in range(frames_before):
            net(X)
        disturb.set()
        begins.wait()
        while thread.is_alive():  # the interpreter is taken in one of these frames
            net(X)
        for _ in range(3):
            net(X)
    assert len(rec.late) == 1
    assert rec.late[0].frame >= frames_before - 1
    assert rec.late[0].latency_ns > took * 5e8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing is late; give deadline_ms"),
        ({"deadline_ms": 0}, "deadline_ms must be above 0"),
        ({"slower_than": 1}, "slower_than must be above 1"),
        ({"deadline_ms": 1, "keep": -1}, "keep must be at least 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tv.flight_recorder(nn.Linear(4, 4), **options)


def test_run_with_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("speak.py").write_text(
        "import time, torch\n"
        "net = torch.nn.Linear(4, 4)\n"
        "for frame in range(12):\n"
        "    net(torch.ones(1, 4))\n"
        f"    time.sleep({LATE_S} if frame == 9 else 0)\n"
    )
    assert talkerviz(monkeypatch, "run", "--deadline", f"{LATE_S * 900:g}ms", "speak.py") == 0
    error = capfd.readouterr().err
    assert "1 frame later than" in error
    assert error.endswith("the last 12 calls -> run.parquet\n")
    assert talkerviz(monkeypatch, "show", "--late", "run.parquet") == 0
    shown = capfd.readouterr().out.splitlines()
    assert len(shown) == 1
    assert shown[0].startswith("frame 9 took ")
    assert "the code outside modules took" in shown[0]
    assert talkerviz(monkeypatch, "show", "--late", "speak.parquet") == 2
    assert "no late frames beside it" in capfd.readouterr().err
    assert talkerviz(monkeypatch, "run", "--deadline", "soon", "speak.py") == 2
    assert "--deadline 'soon': not a time; write it as 80ms or 0.5s" in capfd.readouterr().err
