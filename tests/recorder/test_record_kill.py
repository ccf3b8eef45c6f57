"""A run that is killed, or whose disk is full: what was written is there, whole batches of it, and can be read."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from pathlib import Path
from typing import IO, NamedTuple

import pandas as pd
import pytest
import torch
from command_line import talkerviz
from forked import forked
from full_disk import disk_of
from taps import every_way
from torch import nn

import talkerviz as tv
from talkerviz.atomic_file import LeftoverWarning
from talkerviz.recorder import recording as recorder
from talkerviz.trace import TraceError

CALLS_A_BATCH, SECONDS_A_BATCH = 1 << 14, 1.0
EVENT_BYTES = 4  # as they are written, compressed
COLUMNS = ["path", "parent", "depth", "thread", "phase", "frame", "inputs", "host_start_ns"]


class Killed(NamedTuple):
    partial: Path
    told: list[tuple[int, float]]
    """How many calls it had made, and when."""


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Identity())

    def forward(self, x: torch.Tensor, calls: int, pause: float) -> None:
        for _ in range(calls // 2):
            self.inner(x)
            time.sleep(pause)


def kill(folder: Path, calls: int, pause: float, size: int, seconds: float) -> Killed:
    """Start a run, and kill it once its file has grown past a size and it has called for so long."""
    file, model = folder / "run.parquet", Loop()
    told: list[tuple[int, float]] = []
    partial = Path(f"{file}.partial")

    def run(out: IO[str]) -> None:
        with tv.recording(model, file=file):
            for frame in range(1, 10**9):
                model(torch.zeros(2), calls, pause)
                print(frame * (calls + 1), time.monotonic(), file=out)

    with forked(run) as (child, output):
        for line in output:
            done, when = line.split()
            told.append((int(done), float(when)))
            if partial.stat().st_size > size and told[-1][1] - told[0][1] > seconds:
                os.kill(child, signal.SIGKILL)
                break
        # What it said until it died; its last line may be cut short.
        rest = [line.split() for line in output if line.endswith("\n")]
    return Killed(partial, told + [(int(done), float(when)) for done, when in rest])


def is_beginning_of(part: pd.DataFrame, whole: pd.DataFrame) -> bool:
    """Whether those calls are the first, and what is known of those that ended is the same."""
    head = whole.iloc[: len(part)]
    ended = part["error"].ne("unfinished").fillna(True)
    columns = [*COLUMNS, "outputs", "host_ns", "host_self_ns", "error"]
    same = part[COLUMNS].astype(object).equals(head[COLUMNS].astype(object))
    return same and part[ended][columns].astype(object).equals(head[ended][columns].astype(object))


def looks_as_it_should(calls: pd.DataFrame, pairs: int) -> None:
    """Whole frames of so many pairs of calls, but for the last; only what was going on then has no end."""
    lines = ["model", *["model.inner", "model.inner.0"] * pairs] * (len(calls) // (2 * pairs + 1) + 1)
    paths = calls["path"].astype(str)
    assert paths.tolist() == lines[: len(calls)]
    assert calls["depth"].tolist() == [line.count(".") for line in lines[: len(calls)]]
    nested = calls["parent"].notna()
    assert paths[calls["parent"][nested].astype(int)].tolist() == paths[nested].str.rpartition(".")[0].tolist()
    is_open = calls["error"].notna()
    assert set(calls["error"][is_open]) <= {"unfinished"}
    assert calls["depth"][is_open].tolist() == list(range(int(is_open.sum())))
    assert set(calls["frame"][is_open]) <= {calls["frame"].max()}
    assert (calls["host_ns"] >= 0).all()
    assert (calls["host_self_ns"] >= 0).all()


def test_a_fast_run_is_killed(tmp_path: Path) -> None:
    partial, told = kill(tmp_path, 1000, 0.0, size=4 * 2 * CALLS_A_BATCH * EVENT_BYTES, seconds=0.0)
    trace = tv.Trace.load(partial)
    assert len(trace.calls) > told[-1][0] - CALLS_A_BATCH
    assert trace.facts["unfinished"] is True
    looks_as_it_should(trace.calls, 500)
    with pytest.raises(TraceError) as raised:
        tv.Trace.load(tmp_path / "run.parquet")
    assert f"open {partial}" in str(raised.value)

    whole, rng, cut, found = partial.read_bytes(), random.Random(0), tmp_path / "cut.parquet.partial", set()
    for size in sorted(rng.randrange(len(whole)) for _ in range(12)):
        cut.write_bytes(whole[:size])
        try:
            part = tv.Trace.load(cut).calls
        except TraceError:
            continue
        assert is_beginning_of(part, trace.calls)
        found.add(len(part))
    assert len(found) > 3


def test_a_slow_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    partial, told = kill(tmp_path, 10, 0.004, size=0, seconds=2.5 * SECONDS_A_BATCH)
    calls = tv.Trace.load(partial).calls
    # Written between frames, when a second has gone by: as the last but one frame that it told of had ended.
    assert len(calls) >= max(done for done, when in told if when <= told[-2][1] - SECONDS_A_BATCH)
    looks_as_it_should(calls, 5)
    assert talkerviz(monkeypatch, "show", partial) == 0
    shown = capfd.readouterr()
    assert "model.inner.0" in shown.out
    assert "killed" in shown.out
    assert shown.err == ""


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = nn.Identity()

    def forward(self, x: torch.Tensor, error: BaseException | None = None) -> torch.Tensor:
        x = self.leaf(x)
        if error is not None:
            raise error
        return x


def test_cut_at_many_bytes_of_a_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_BATCH", 6)
    path, cut = tmp_path / "run.parquet", tmp_path / "cut.parquet.partial"
    model = Inner()
    with tv.recording(model, file=path):
        for size in range(4):
            model(torch.zeros(size))
            with pytest.raises(ArithmeticError):
                model(torch.zeros(1), ArithmeticError())
        whole = Path(f"{path}.partial").read_bytes()
    calls, found = tv.Trace.load(path).calls, []
    # The first block says what the run was: without all of it, nothing can be read.
    body = 24 + int.from_bytes(whole[4:8], "little")
    rng = random.Random(0)
    within = sorted(rng.sample(range(body, len(whole)), 60))
    for size in [*range(9), *rng.sample(range(body), 20), body - 1, body, *within, len(whole)]:
        cut.write_bytes(whole[:size])
        try:
            part = tv.Trace.load(cut).calls
        except TraceError as error:
            assert size < body, str(error)  # noqa: PT017
            continue
        assert is_beginning_of(part, calls)
        found.append(len(part))
    assert found == sorted(found)
    assert len(set(found)) > 3


@every_way
@pytest.mark.parametrize("error", [ArithmeticError("no"), MemoryError(), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_leaves_a_whole_file(any_tap: str, error: BaseException, tmp_path: Path) -> None:
    path, model = tmp_path / "run.parquet", Inner()
    with pytest.raises(type(error)), tv.recording(model, file=path) as rec:  # noqa: PT012
        model(torch.zeros(1))
        model(torch.zeros(1), error)
    assert [file.name for file in tmp_path.iterdir()] == ["run.parquet"]
    calls = tv.Trace.load(path).calls
    assert calls["path"].tolist() == ["model", "model.leaf"] * 2
    # Hooks are called for exceptions alone, and not for Ctrl-C.
    name = type(error).__name__ if any_tap == "tap" or isinstance(error, Exception) else "unfinished"
    assert calls["error"].fillna("").tolist() == ["", "", name, ""]
    assert rec.trace.calls.equals(calls)
    assert "unfinished" not in rec.trace.facts


def test_nowhere_to_write(tmp_path: Path) -> None:
    model, plain = Inner(), nn.Module.__call__
    (tmp_path / "file").write_bytes(b"")
    for folder in ("nosuch", "file"):
        with pytest.raises(OSError, match=folder), tv.recording(model, file=tmp_path / folder / "run.parquet"):
            pytest.fail("the run must not begin")
        assert nn.Module.__call__ is plain
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    """That is found out at the end: the run is kept beside it."""
    model, path = Inner(), tmp_path / "run.parquet"
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="run.parquet: Is a directory"), tv.recording(model, file=path):
        model(torch.zeros(1))
    assert tv.Trace.load(f"{path}.partial").calls["path"].tolist() == ["model", "model.leaf"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.parquet", "run.parquet.partial"]


@every_way
def test_a_full_disk(any_tap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_BATCH", 64)
    model, plain, path, done = Inner(), nn.Module.__call__, tmp_path / "run.parquet", 0
    kept = 0
    said = r"run.parquet: File too large; what was recorded until then is in .*run.parquet.partial"
    with disk_of(30_000), pytest.warns(RuntimeWarning, match=said), tv.recording(model, file=path) as rec:  # noqa: PT031
        for _ in range(3_000):  # which the disk does not stop
            done += int(model(torch.zeros(1)).numel())
            kept = done if rec.lost is None else kept
    assert done == 3_000
    assert nn.Module.__call__ is plain
    assert rec.lost == "File too large"
    partial = Path(f"{path}.partial")
    assert rec.file == partial
    assert [file.name for file in tmp_path.iterdir()] == [partial.name]
    calls = rec.trace.calls
    assert calls["path"].tolist() == (["model", "model.leaf"] * done)[: len(calls)]
    assert 100 < kept < 2_999
    assert len(calls) > 2 * kept - 64  # but for the batch that did not fit


def test_a_disk_that_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recorder, "write_log", full)
    model, path = nn.ReLU(), tmp_path / "r.parquet"
    with pytest.warns(RuntimeWarning, match="No space left"), tv.recording(model, file=path) as rec:
        model(torch.zeros(1))
    assert [file.name for file in tmp_path.iterdir()] == ["r.parquet.partial"]
    assert len(rec.trace.calls) == 1


def test_two_runs_of_one_file(tmp_path: Path) -> None:
    """The second does not begin, and the first is whole."""
    model, path = nn.ReLU(), tmp_path / "r.parquet"
    for _ in range(2):  # again when it is over
        with tv.recording(model, file=path) as rec:
            model(torch.zeros(1))
            with (
                pytest.raises(ValueError, match=r"r.parquet.partial: another run is writing to it"),
                tv.recording(nn.ReLU(), file=path),
            ):
                pytest.fail("the run must not begin")
            model(torch.zeros(1))
        assert len(rec.trace.calls) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["r.parquet"]


def test_what_a_killed_run_left_is_kept(tmp_path: Path) -> None:
    """The next run of the name moves it, also where an earlier one was moved before."""
    model, path = Inner(), tmp_path / "run.parquet"
    partial = Path(f"{path}.partial")
    for number in (1, 2):
        partial.write_bytes(b"of a killed run, %d" % number)
        said = pytest.warns(LeftoverWarning, match=rf"run.parquet.partial: left by a run .*{partial}.{number}: `talk")
        with said, tv.recording(model, file=path):
            model(torch.zeros(1))
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file != path}
    assert left == {f"run.parquet.partial.{number}": b"of a killed run, %d" % number for number in (1, 2)}
    partial.write_bytes(b"")  # killed before the header was written
    with tv.recording(model, file=path):
        model(torch.zeros(1))
    assert not partial.exists()


def test_a_run_killed_with_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lock file is there still, and holds up nobody; what it recorded can be read."""

    def run(out: IO[str]) -> None:
        model = nn.ReLU()
        with tv.recording(model, file=tmp_path / "run.parquet") as rec:
            model(torch.zeros(1))
            rec._write()
            os.kill(os.getpid(), signal.SIGKILL)

    with forked(run) as (_, output):
        assert output.read() == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == [".run.parquet.partial.lock", "run.parquet.partial"]
    monkeypatch.chdir(tmp_path)
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--frames", 1, "--no-flow", "-o", "run.parquet") == 0
    said = capsys.readouterr().err
    assert said.startswith("talkerviz: run.parquet.partial: left by a run that did not end; kept as ")
    assert said.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.parquet", "run.parquet.partial.1"]
    assert len(tv.Trace.load("run.parquet.partial.1").calls) == 1


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_is_at_the_name_of_the_unfinished_file_is_not_touched(kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    partial = tmp_path / "run.parquet.partial"
    if "link" in kind:
        partial.symlink_to("mine" if kind == "link" else "nothing")
    elif kind == "folder":
        partial.mkdir()
    else:
        os.mkfifo(partial)
    with (
        pytest.raises(ValueError, match=r"run.parquet.partial: is (a link|a folder|not a regular file) at"),
        tv.recording(Inner(), file=tmp_path / "run.parquet"),
    ):
        pytest.fail("the run must not begin")
    assert (tmp_path / "mine").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "run.parquet.partial"]


def test_a_second_process_of_one_file(tmp_path: Path) -> None:
    path, model = tmp_path / "r.parquet", nn.ReLU()
    begun, begin = os.pipe()

    def run(out: IO[str]) -> None:
        os.read(begun, 1)
        with tv.recording(nn.ReLU(), file=path):
            pass

    # Forked before the recording begins, whose lock it would have otherwise.
    with forked(run) as (_, output), tv.recording(model, file=path) as rec:
        model(torch.zeros(1))
        os.write(begin, b"x")
        assert "another run is writing to it" in output.read()
    os.close(begun)
    os.close(begin)
    assert len(rec.trace.calls) == 1


def test_a_device_has_no_unfinished_file() -> None:
    with pytest.raises(ValueError, match=r"/dev/null: not a regular file"), tv.recording(nn.ReLU(), file="/dev/null"):
        pytest.fail("the run must not begin")
    assert not Path("/dev/null.partial").exists()


def test_a_disk_that_is_full_at_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    with disk_of(10), pytest.raises(OSError, match="File too large") as raised, tv.recording(nn.ReLU(), file=path):
        pytest.fail("the run must not begin")
    assert raised.value.filename == f"{path}.partial"
    assert not any(tmp_path.iterdir())


def test_the_command_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recorder, "_BATCH", 64)
    with disk_of(20_000):
        assert talkerviz(monkeypatch, "trace", "--preset", "tiny", "--frames", 3, "--no-flow", "-o", "r.parquet") == 2
    said = capsys.readouterr().err
    assert said == "talkerviz: r.parquet: File too large; what was recorded until then is in r.parquet.partial\n"
    with disk_of(100):
        assert talkerviz(monkeypatch, "render", "r.parquet.partial", "-f", "csv", "-o", "r.csv") == 2
        assert capsys.readouterr().err == "talkerviz: r.csv: File too large\n"
        assert talkerviz(monkeypatch, "report", "r.parquet.partial", "-o", "report") == 2
        assert "File too large" in (said := capsys.readouterr().err)
        assert said.startswith("talkerviz: report")
