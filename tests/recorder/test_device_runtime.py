"""Stamps through the functions of a runtime, by address: on a made-up CUDA runtime, built by the C compiler."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import talkerviz as tv
from talkerviz.recorder import tap
from talkerviz.recorder.instruments import device_clock
from talkerviz.recorder.instruments.base import RunContext
from talkerviz.recorder.instruments.device_clock import DeviceClock
from talkerviz.recorder.instruments.device_runtime import DeviceRuntime, native_functions, runtime_of
from talkerviz.recorder.instruments.registry import CLOCKS, Kind

COMPILER = shutil.which("cc") or shutil.which("gcc")
MS = 1_000_000

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler to build the made-up runtime"),
    pytest.mark.skipif(tap.Tap is None, reason="no C compiler built the tap"),
]

MADE, RECORDED, DESTROYED, LAST_ERROR = range(4)


class Runtime:
    """The made-up runtime, with a current stream for each of two devices; 0 is the default stream."""

    def __init__(self, library: Path) -> None:
        self.path, self.library = library, ctypes.CDLL(str(library))
        self.library.make_stream.restype = ctypes.c_void_p
        self.library.count.restype = ctypes.c_long
        self.library.work.argtypes = [ctypes.c_int, ctypes.c_int64]
        self.library.set_capturing.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.streams = [0, 0]
        self.current = ctypes.c_int()

    def current_device(self) -> int:
        self.library.cudaGetDevice(ctypes.byref(self.current))
        return self.current.value

    def runtime(self) -> DeviceRuntime:
        return DeviceRuntime(
            event=lambda external: None,
            stream_of=lambda device: self.streams[device],
            current=self.current_device,
            synchronize=self.library.synchronize,
            functions=native_functions(self.path, "cuda"),
            ring=16,
        )


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    library = tmp_path / "libruntime.so"
    source = Path(__file__).parents[1] / "helpers" / "fake_runtime.c"
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", source, "-o", library], check=True)
    return Runtime(library)


class Works(nn.Module):
    def __init__(self, runtime: Runtime, ns: int, *inner: nn.Module, device: int = 0) -> None:
        super().__init__()
        self.inner = nn.ModuleList(inner)
        self.work = lambda: runtime.library.work(device, ns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.inner:
            module(x)
        self.work()
        return x


def record(monkeypatch: pytest.MonkeyPatch, runtime: Runtime, model: nn.Module, run: Any) -> tv.Trace:
    def make(run: RunContext) -> list[DeviceClock]:
        return [DeviceClock(replace(run, devices=(0, 1)), runtime.runtime(), 0)]

    monkeypatch.setitem(CLOCKS, "cuda", Kind(make))
    with tv.recording(model, clock="cuda") as rec:
        run()
    return rec.trace


def rounded(trace: tv.Trace) -> list[float]:
    return [round(float(value) / MS, 1) for value in trace.calls["device_ns"].fillna(-MS)]


def test_times_on_the_default_stream_of_each_device(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> None:
    model = Works(runtime, 1 * MS, Works(runtime, 5 * MS), Works(runtime, 9 * MS, device=1))
    devices = {model: -2, model.inner[0]: 0, model.inner[1]: 1}
    monkeypatch.setattr(
        device_clock,
        "module_devices",
        lambda modules, kind: array("h", [devices.get(one, -1) for one in modules]),
    )

    def run() -> None:
        for device in (0, 1):
            runtime.library.work(device, 50 * MS)
        for _ in range(3):
            model(torch.zeros(1))

    trace = record(monkeypatch, runtime, model, run)
    assert "unmeasured" not in trace.facts
    assert rounded(trace) == [-1, 5, 9] * 3
    assert runtime.current_device() == 0
    assert runtime.library.count(LAST_ERROR) == 0  # torch would raise it at its next kernel


def test_times_on_another_stream(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> None:
    runtime.streams[0] = runtime.library.make_stream(0)
    model = Works(runtime, 1 * MS, Works(runtime, 5 * MS))

    def run() -> None:
        runtime.library.work(0, 50 * MS)  # so that the host runs ahead
        model(torch.zeros(1))

    assert rounded(record(monkeypatch, runtime, model, run)) == [6, 5]


def test_many_stamps_use_few_events(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> None:
    model = Works(runtime, 0, *[Works(runtime, 0) for _ in range(20)])
    trace = record(monkeypatch, runtime, model, lambda: [model(torch.zeros(1)) for _ in range(200)])
    assert len(trace.calls) == 4200
    assert trace.calls["device_ns"].notna().all()
    assert runtime.library.count(MADE) < 600
    assert runtime.library.count(RECORDED) > 8400
    del trace
    gc.collect()
    assert runtime.library.count(DESTROYED) == runtime.library.count(MADE)


def test_a_stream_that_captures_gets_no_plain_event(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> None:
    runtime.streams[0] = stream = runtime.library.make_stream(0)
    model = Works(runtime, 1 * MS)
    captured = []
    monkeypatch.setattr(
        DeviceClock, "_stamp_capture", lambda clock, thread, stamp, depth: captured.append((thread, stamp))
    )

    def run() -> None:
        model(torch.zeros(1))
        runtime.library.set_capturing(stream, 1)
        model(torch.zeros(1))
        runtime.library.set_capturing(stream, 0)
        model(torch.zeros(1))

    trace = record(monkeypatch, runtime, model, run)
    assert rounded(trace)[1] == -1
    assert captured == [(0, 2), (0, 3)]
    assert "unmeasured" not in trace.facts


def test_a_failed_runtime_is_said_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> None:
    model, outputs = Works(runtime, 1 * MS), []

    def run() -> None:
        runtime.library.break_records(700)
        outputs.append(model(torch.ones(1)))

    trace = record(monkeypatch, runtime, model, run)
    assert outputs[0].item() == 1
    assert len(trace.calls) == 1
    assert trace.facts["unmeasured"] == "recording an event failed with error 700"
    assert runtime.library.count(LAST_ERROR) == 0


def test_functions_are_those_of_a_loaded_library_alone(runtime: Runtime, tmp_path: Path) -> None:
    functions = native_functions(runtime.path, "cuda")
    assert functions is not None
    assert all(functions.values())
    assert native_functions(runtime.path, "hip") is None
    copy = tmp_path / "other.so"
    shutil.copy(runtime.path, copy)
    assert native_functions(copy, "cuda") is None  # it is not loaded
    assert native_functions(tmp_path / "none.so", "cuda") is None


def test_another_accelerator_is_timed_by_torch() -> None:
    other = runtime_of("xpu")
    assert other.functions is None
    assert other.capturing is None
