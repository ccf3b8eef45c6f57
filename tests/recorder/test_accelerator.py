"""Device times, memory and names on an accelerator that torch knows through its general interface alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HELPERS = Path(__file__).parents[1] / "helpers"
COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Build the accelerator of `made_up_accelerator.cpp`, and return what `accelerator_child.py` saw on it."""
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("no C++ compiler to build the made-up accelerator")
    folder, torch_folder = tmp_path_factory.mktemp("accelerator"), Path(torch.__file__).parent
    library = folder / "libmadeup.so"
    include = [f"-I{torch_folder / 'include' / part}" for part in ("", "torch/csrc/api/include")]
    built = subprocess.run(
        [
            *(COMPILER, "-O0", "-std=c++20", "-fPIC", "-shared", *include, HELPERS / "made_up_accelerator.cpp"),
            *("-o", library, f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"),
        ],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    child = subprocess.run(
        [sys.executable, HELPERS / "accelerator_child.py", library],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


def test_it_is_found_and_named(seen: Any) -> None:
    assert seen["auto"] == "madeup"
    assert seen["clock"] == "device"
    assert seen["gpu"] == "Made-up 0"
    assert seen["doctor"].startswith("Made-up 1, ")


def test_times_are_the_device_s_while_the_host_runs_ahead(seen: Any) -> None:
    assert seen["nested"] == [["model", 15.0], ["model.inner.0", 5.0], ["model.inner.1", 9.0]] * 2
    assert seen["self"] == [1.0, 5.0, 9.0] * 2
    assert seen["ran_ahead"]
    assert seen["second_after_first"]
    assert seen["behind_the_host"]


def test_each_call_is_timed_on_its_own_device(seen: Any) -> None:
    assert seen["devices"] == [
        ["model", None],
        ["model.here", 4.0],
        ["model.there", 40.0],
        ["model.activation", 3.0],
    ]
    assert seen["several_devices"] == {"calls": 1, "modules": ["model"]}
    assert seen["current"] == 0


def test_times_are_those_of_the_current_stream(seen: Any) -> None:
    assert seen["stream"] == [["model", 7.0]]


def test_threads_on_devices_of_their_own(seen: Any) -> None:
    assert seen["threads"] == {"model.0": [20, 1.0], "model.1": [20, 2.0]}


def test_memory_is_counted_and_what_is_missing_is_said(seen: Any) -> None:
    assert seen["memory"] == 2 * 256 * 4
    assert seen["no_busy_time"] == [True, "torch's profiler saw no kernel of madeup"]


def test_without_timed_events_calls_have_host_times_alone(seen: Any) -> None:
    reason, calls = seen["untimed"]
    assert "no timed events" in reason
    assert calls == [["model", None]]
