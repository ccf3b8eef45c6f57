"""When `talkerviz run` records: some frames, a time, or from one signal to the next."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from command_line import Capture, talkerviz
from repo_paths import ROOT

from talkerviz.api import Trace

# What the program waits for comes from the recorder's thread; a test that fails ends all the same.
WAIT = """
import os, signal, sys, time, torch
from pathlib import Path
from torch import nn

torch.set_grad_enabled(False)  # else an optimizer of another test makes it a training loop
x = torch.ones(1, 4)


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            sys.exit("it did not come")
        time.sleep(0.002)


def switch():
    os.kill(os.getpid(), signal.SIGUSR2)


plain_call = nn.Module.__call__


def is_recorded():
    return nn.Module.__call__ is not plain_call
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGUSR2)
    yield tmp_path / "program.py"
    signal.signal(signal.SIGUSR2, before)
    torch.set_grad_enabled(True)


def test_some_frames_of_two_models(program: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    program.write_text(
        f"{WAIT}\nencoder, body, head = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)\n"
        "x = encoder(x)\n"
        "for _ in range(30):\n    x = head(body(x))\n"
        "wait_until(lambda: Path('run.parquet').exists())\n"
        "for _ in range(30):\n    x = head(body(x))\n"
    )
    assert talkerviz(monkeypatch, "run", "--frames", "20:23", program) == 0
    assert capfd.readouterr().err.endswith("9 calls -> run.parquet\n")
    calls = Trace.load("run.parquet").calls
    assert calls["path"].tolist() == ["body", "body.0", "head"] * 3
    assert calls["frame"].tolist() == [20] * 3 + [21] * 3 + [22] * 3
    assert not calls["error"].notna().any()
    assert talkerviz(monkeypatch, "run", "--frames", "40:", "-o", "late.parquet", program) == 0
    assert Trace.load("late.parquet").calls["frame"].unique().tolist() == list(range(40, 60))


def test_steps_of_a_training_loop_are_frames_to_choose(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.write_text(
        f"{WAIT}\nnet = nn.Linear(4, 4)\noptimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "torch.set_grad_enabled(True)\n"
        "for _ in range(6):\n    net(x).sum().backward()\n    optimizer.step()\n    optimizer.zero_grad()\n"
    )
    assert talkerviz(monkeypatch, "run", "--frames", "2:4", program) == 0
    calls = Trace.load("run.parquet").calls
    assert calls["frame"].unique().tolist() == [2, 3]
    assert set(calls["phase"]) >= {"forward", "backward", "optimizer"}
    assert calls["frame"][calls["path"] == "SGD"].tolist() == [2, 3]


def test_a_time_after_the_import_of_torch(program: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    program.write_text(
        f"{WAIT}\nnet, calls = nn.Linear(4, 4), 0\n"
        "def step():\n    global calls\n    net(x)\n    calls += 1\n    return Path('run.parquet').exists()\n"
        "wait_until(step)\nnet(x)\nprint(calls)\n"
    )
    assert talkerviz(monkeypatch, "run", "--after", "100ms", "--for", "200ms", program) == 0
    made = int(capfd.readouterr().out)
    assert 0 < (Trace.load("run.parquet").calls["path"] == "net").sum() < made


def test_each_pair_of_signals_is_a_recording(program: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    program.write_text(
        f"{WAIT}\nnet, head = nn.Linear(4, 4), nn.Linear(4, 2)\nnet(x)\nhead(x)\n"
        "for file, model in (('run.parquet', net), ('run.2.parquet', head)):\n"
        "    switch()\n    wait_until(is_recorded)\n    model(x)\n"
        "    switch()\n    wait_until(lambda: Path(file).exists() and not is_recorded())\n    net(x)\n"
        "switch()\nwait_until(is_recorded)\nnet(x)\n"
    )
    assert talkerviz(monkeypatch, "run", "--signal", "USR2", program) == 0
    assert "1 call -> run.2.parquet" in capfd.readouterr().err
    traces = [Trace.load(name) for name in ("run.parquet", "run.2.parquet", "run.3.parquet")]
    assert [trace.calls["path"].tolist() for trace in traces] == [["net"], ["head"], ["net"]]


def test_a_recording_that_begins_inside_a_call_waits_for_the_next(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text(
        f"{WAIT}\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.inner = nn.Sequential(nn.Linear(4, 4))\n"
        "    def forward(self, x):\n"
        "        if not is_recorded():\n            switch()\n            wait_until(is_recorded)\n"
        "        return self.inner(x)\n"
        "net = Net()\nnet(x)\nnet(x)\n"
    )
    assert talkerviz(monkeypatch, "run", "--signal", "USR2", program) == 0
    assert Trace.load("run.parquet").calls["path"].tolist() == ["net", "net.inner", "net.inner.0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--signal", "USR2"], "program.py: nothing was recorded, as no signal came"),
        (["--after", "10min"], "program.py: nothing was recorded, as it ended before --after"),
        (["--frames", "7:"], "program.py: it called no module in these frames"),
        (["--frames", "7:7"], "--frames '7:7': no frames; write the first, and the one after the last, as 100:110"),
        (["--frames", "7"], "--frames '7': no frames; write the first, and the one after the last, as 100:110"),
        (["--signal", "KILL"], "--signal KILL: no signal that a program can handle; use USR2 or USR1"),
        (["--after", "soon"], "--after 'soon': not a time; write it as 80ms or 0.5s"),
        (["--signal", "USR2", "--after", "1s"], "--signal and --after: two ways to begin a recording; give one"),
        (["--deadline", "1s", "--frames", "1:"], "--deadline and --frames: the last frames are kept, or the first"),
    ],
)
def test_what_is_not_recorded_is_one_line(
    program: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    program.write_text(f"{WAIT}\nnn.Linear(4, 4)(x)\n")
    assert talkerviz(monkeypatch, "run", *options, program) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"talkerviz: {message}")
    assert not list(Path().glob("run*.parquet*"))


def test_shapes_without_times(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.write_text(f"{WAIT}\nnet = nn.Linear(4, 4)\nnet(x)\n")
    assert talkerviz(monkeypatch, "run", "--clock", "none", program) == 0
    calls = Trace.load("run.parquet").calls
    assert calls["host_ns"].isna().all()
    assert calls["inputs"][0][0].shape == (1, 4)


def test_a_server_between_two_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    example = ROOT / "examples" / "server_program.py"
    command = [sys.executable, "-m", "talkerviz", "run", "--signal", "USR2", str(example), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def ask(length: int) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/generate/{length}", method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return len(json.load(answer)["tokens"])

    def is_up() -> bool:
        try:
            return ask(1) == 1
        except OSError:
            assert server.poll() is None
            return False

    try:
        wait_until(is_up)
        server.send_signal(signal.SIGUSR2)
        wait_until(lambda: any(Path().glob("*.partial")))
        with ThreadPoolExecutor(4) as clients:
            assert list(clients.map(ask, (3, 4, 5, 6))) == [3, 4, 5, 6]
        server.send_signal(signal.SIGUSR2)
        wait_until(lambda: Path("run.parquet").exists())
        assert ask(2) == 2
    finally:
        server.send_signal(signal.SIGINT)
        _, error = server.communicate()
    calls = Trace.load("run.parquet").calls
    assert (calls["path"] == "model").sum() == 3 + 4 + 5 + 6
    assert calls["frame"].nunique() == 18
    assert error.rstrip().endswith("-> run.parquet")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
