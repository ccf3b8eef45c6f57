"""Parts of the GPU benchmarks that need no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
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
    names = ("fused_sizes", "gpu", "replayed_frame", "streams", "talker")
    code = f"import sys; sys.modules['graphviz'] = None; import {', '.join(names)}"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(BENCHMARKS)})
