"""Parts of the GPU benchmarks that need no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from repo_paths import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))
import replayed_frame
import streams


def launch(number: int, name: str = "cudaGraphLaunch") -> dict[str, Any]:
    return {"cat": "cuda_runtime", "name": name, "ts": number, "dur": 1, "args": {"correlation": number}}


def ran(name: str, at: float, time: float, number: int, kind: str = "kernel") -> dict[str, Any]:
    return {"cat": kind, "name": name, "ts": at, "dur": time, "args": {"correlation": number}}


def test_the_kernels_of_replays() -> None:
    seen = [
        launch(1, "cudaLaunchKernel"), ran("eager", 0, 500, 1),
        launch(2), ran("gemv", 100, 30, 2), ran("gemv", 140, 30, 2), ran("copy", 170, 10, 2, "gpu_memcpy"),
        launch(3), ran("gemv", 300, 40, 3), ran("gemv", 340, 40, 3), ran("copy", 390, 10, 3, "gpu_memcpy"),
        {"ph": "M", "name": "process_name"},
    ]  # fmt: skip
    frame = replayed_frame.frame_of({"traceEvents": seen})
    assert frame.span_us == 90
    assert frame.kernels == [("gemv", 2, 70), ("copy", 1, 10)]
    assert frame.running_us == 80
    said = replayed_frame.table(frame, floor_us=45, rows=1)
    assert "takes 90 µs" in said[0]
    assert "45 µs at the least: 50% of it" in said[0]
    assert "3 kernels run for 80 µs, of which 35 are more than that" in said[0]
    assert "nothing for 10 µs" in said[0]
    assert said[2:] == [
        "| kernel | a frame | µs a frame | of the frame |",
        "| --- | ---: | ---: | ---: |",
        "| `gemv` | 2 | 70.0 | 77.8% |",
        "| `1 others` | 1 | 10.0 | 11.1% |",
    ]
    with pytest.raises(ValueError, match="no kernel that a graph's replay launched"):
        replayed_frame.frame_of({"traceEvents": seen[:2]})


def test_kernels_that_begin_early_count_once() -> None:
    seen = [launch(1), ran("one", 100, 30, 1), ran("two", 110, 40, 1), ran("three", 145, 15, 1), ran("four", 170, 5, 1)]
    frame = replayed_frame.frame_of({"traceEvents": seen})
    assert frame.span_us == 75
    assert frame.kernels == [("one", 1, 30), ("two", 1, 20), ("three", 1, 10), ("four", 1, 5)]
    assert frame.running_us == 65


def test_streams_side_by_side() -> None:
    rows = list(streams.measure("tiny:float32", "cpu", [3], frames=3, rounds=1))
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 3"]
    assert rows[0].endswith("| native | 1.00x |")


def test_they_need_nothing_that_draws() -> None:
    """A GPU's machine may have torch, transformers and little else."""
    names = ("device_events", "fused_sizes", "gpu", "recorded_replays", "replayed_frame", "streams", "talker")
    code = f"import sys; sys.modules['graphviz'] = None; import {', '.join(names)}"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(BENCHMARKS)})


FAKE_TIMEOUT = """#!/usr/bin/env bash
# In the place of timeout: notes the seconds and the command, and ends as the test says.
seconds=$3
shift 3
echo "$seconds $*" >>"$NOTES"
for word in $HANGS; do [[ "$*" == *"$word"* ]] && exit 124; done
for word in $DIES; do [[ "$*" == *"$word"* ]] && exit 137; done
echo "ran $*"
"""


def run_script(tmp_path: Path, script: str, **variables: str) -> tuple[int, list[tuple[int, str]], dict[str, str]]:
    """Run a script with its steps stubbed; return its exit code, seconds and command of each step, and the archive."""
    stub = tmp_path / "bin" / "timeout"
    stub.parent.mkdir()
    stub.write_text(FAKE_TIMEOUT, encoding="utf-8")
    stub.chmod(0o755)
    notes, archive = tmp_path / "notes", tmp_path / "out.tgz"
    notes.touch()
    path = f"{stub.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "NOTES": str(notes), "HANGS": "", "DIES": "", **variables}
    ended = subprocess.run(["bash", BENCHMARKS / script, archive], env=env, cwd=BENCHMARKS.parent, capture_output=True)
    steps = [line.split(" ", 1) for line in notes.read_text(encoding="utf-8").splitlines()]
    with tarfile.open(archive) as kept:
        files = {
            member.name: kept.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in kept.getmembers()
            if member.isfile()
        }
    return ended.returncode, [(int(seconds), command) for seconds, command in steps], files


@pytest.mark.parametrize("script", ["gpu.sh", "gpu_more.sh"])
def test_all_steps_fit_their_time_and_are_kept(tmp_path: Path, script: str) -> None:
    code, steps, files = run_script(tmp_path, script)
    assert code == 0
    assert sum(seconds for seconds, _ in steps) <= 560
    assert steps[0] == (15, "bash benchmarks/build_tap.sh")
    lines = files["gpu/steps.md"].splitlines()[2:]
    assert len(lines) == len(steps) == len([name for name in files if name.startswith("gpu/log/")])
    for _, command in steps[1:]:
        words = command.split()
        programs = [word for word in words if word.endswith(".py")]
        assert programs
        for program in programs:
            assert (BENCHMARKS.parent / program).exists()


def test_a_step_that_hangs_has_failed_and_the_others_run(tmp_path: Path) -> None:
    code, steps, files = run_script(tmp_path, "gpu.sh", HANGS="fused_sizes", DIES="device_events")
    assert code == 1
    assert len(steps) == 8
    assert "| events | 137 |" in files["gpu/steps.md"]
    assert "| sizes | 124 |" in files["gpu/steps.md"]
    # Kernels that hang are not run again.
    assert "--without compile fused" in steps[-1][1]


def test_without_the_compiled_tap_nothing_is_measured(tmp_path: Path) -> None:
    code, steps, files = run_script(tmp_path, "gpu.sh", DIES="build_tap")
    assert code == 1
    assert len(steps) == 1
    assert "| tap | 137 |" in files["gpu/steps.md"]


def test_all_steps_together_have_a_limit(tmp_path: Path) -> None:
    code, steps, files = run_script(tmp_path, "gpu.sh", LIMIT="5")
    assert code == 1
    assert steps == []
    assert files["gpu/log/tap.txt"] == "no time was left\n"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_tap_is_built_in_place(tmp_path: Path) -> None:
    """Build it in a copy of the sources, once whole and once without the type that is looked for."""
    native = Path("talkerviz") / "recorder" / "native"
    shutil.copytree(BENCHMARKS.parent / native, tmp_path / native)
    (tmp_path / "benchmarks").mkdir()
    script = Path(shutil.copy(BENCHMARKS / "build_tap.sh", tmp_path / "benchmarks"))
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert list((tmp_path / native.parent).glob("_tap*"))
    broken = tmp_path / native / "tap.c"
    broken.write_text(broken.read_text(encoding="utf-8").replace('"Tap", type', '"Other", type'), encoding="utf-8")
    assert subprocess.run(["bash", script], env=env, capture_output=True).returncode != 0
