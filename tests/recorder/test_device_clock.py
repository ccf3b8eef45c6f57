"""Device clock on made-up devices: stamps in C and in Python, threads, pauses, devices, sampled frames, graphs."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fake_cuda import MS, FakeDevice, FakeGraph, FakeMachine, Works, record
from rich.console import Console
from taps import every_way
from torch import nn

import talkerviz as tv
from talkerviz.analysis.summary import summarise
from talkerviz.recorder import recording as recorder
from talkerviz.recorder.instruments import device_clock
from talkerviz.recorder.instruments.registry import CLOCKS
from talkerviz.recorder.python_device_stamps import NO_DEVICE, NO_TIME, SEVERAL_DEVICES, PythonDeviceStamps
from talkerviz.recorder.tap import DeviceStamps
from talkerviz.render.notes import notes_on
from talkerviz.render.terminal.summary_table import render_table
from talkerviz.trace.event_log import DEVICE_CLOCKS
from talkerviz.trace.join import join

both_stamps = pytest.mark.parametrize("stamps_class", [*dict.fromkeys((DeviceStamps, PythonDeviceStamps))])


def rounded(calls: Any, name: str = "device_ns") -> list[float]:
    return [round(float(value) / MS, 1) for value in calls[name].fillna(-MS)]


@every_way
def test_device_times_however_calls_are_seen(any_tap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine([FakeDevice(1.001)])
    model, x = Works(machine, 2 * MS, Works(machine, 5 * MS), Works(machine, 1 * MS)), torch.zeros(1)

    def run() -> None:
        machine.devices[0].work(100 * MS)  # so that the host runs ahead
        for _ in range(2):
            model(x)

    calls = record(monkeypatch, machine, model, run).calls
    assert rounded(calls) == [8, 5, 1] * 2
    assert rounded(calls, "device_self_ns") == [2, 5, 1] * 2


class WorksOn(nn.Module):
    """Works on a device that is not the current one, as torch's operators do on tensors of another device."""

    def __init__(self, machine: FakeMachine, ns: int, device: int) -> None:
        super().__init__()
        self.work: Callable[[], None] = lambda: machine.devices[device].work(ns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.work()
        return x


@every_way
def test_a_call_is_stamped_on_the_device_of_its_weights(any_tap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine([FakeDevice(), FakeDevice()])
    model = nn.Sequential(WorksOn(machine, 5 * MS, 0), WorksOn(machine, 50 * MS, 1))
    numbers = {model: SEVERAL_DEVICES, model[0]: 0, model[1]: 1}
    monkeypatch.setattr(
        device_clock, "module_devices", lambda modules, kind: np.array([numbers[one] for one in modules], np.int16)
    )

    def run() -> None:
        for device in machine.devices:
            device.work(20 * MS)
        model(torch.zeros(1))

    trace = record(monkeypatch, machine, model, run, devices=(0, 1))
    assert rounded(trace.calls) == [-1, 5, 50]  # the whole begins on one device and ends on the other
    assert trace.facts["several_devices"] == {"calls": 1, "modules": ["model"]}
    assert "No device time for a call of model: its weights begin and end on different devices." in notes_on(trace)


def test_devices_of_modules() -> None:
    there = [nn.Parameter(torch.zeros(1, device="meta")) for _ in range(4)]

    class Somewhere(nn.Module):
        def __init__(self, *parameters: nn.Parameter) -> None:
            super().__init__()
            self.parts = nn.ParameterList(parameters)

    class Offloaded:
        def __init__(self, device: str) -> None:
            self.execution_device = device

    modules = [Somewhere(there[at]) for at in range(3)]
    for module, device in zip(modules, ("cuda:0", "cuda:1", "cuda:0"), strict=True):
        module.parts._hf_hook = Offloaded(device)
    around, split = nn.Sequential(*modules), nn.Sequential(*modules[:2])
    found = device_clock.module_devices([nn.ReLU(), *modules, around, split, nn.Linear(1, 1)], "cuda")
    assert list(found) == [NO_DEVICE, 0, 1, 0, 0, SEVERAL_DEVICES, NO_DEVICE]


@every_way
@pytest.mark.parametrize("held_up_ms", [40])
def test_a_pause_of_the_recorder_is_no_device_time(
    any_tap: str, monkeypatch: pytest.MonkeyPatch, held_up_ms: int
) -> None:
    machine = FakeMachine()
    model, x = nn.Sequential(*[Works(machine, 0) for _ in range(40)]), torch.zeros(1)
    monkeypatch.setattr(recorder, "_BATCH", 64)
    written = recorder.TraceOutput.write
    pauses = []

    def slow_write(output: Any, events: Any, thread: int) -> None:
        pauses.append(thread)
        time.sleep(held_up_ms / 1e3)
        written(output, events, thread)

    with monkeypatch.context() as patched:
        patched.setattr(recorder.TraceOutput, "write", slow_write)
        calls = record(monkeypatch, machine, model, lambda: model(x)).calls
    assert len(pauses) > 1
    top = calls[calls["depth"] == 0].iloc[0]
    assert top["device_ns"] < top["host_ns"] + 10 * MS
    # Work that the device still had to do goes on in a pause, and counts.
    busy = nn.Sequential(WorksOn(machine, 100 * MS, 0), *model)
    with monkeypatch.context() as patched:
        patched.setattr(recorder.TraceOutput, "write", slow_write)
        calls = record(monkeypatch, machine, busy, lambda: busy(x)).calls
    assert calls["device_ns"].iloc[0] > 100 * MS


@both_stamps
def test_threads_stamp_at_once(stamps_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    runtime = machine.runtime(ring=8)
    stamps = stamps_class(
        None, lambda: runtime.event(False), runtime.stream_of, runtime.current, runtime.capturing,
        lambda *_: None, b"", 8, 0.0,
    )  # fmt: skip
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    start, threads = threading.Barrier(6), 6

    def work(number: int) -> None:
        start.wait()
        for _ in range(400):
            for entry in (True, False):
                stamps.stamp_call(number, entry, 0, -1, -1, -1, 0)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(switch)
    stamps.settle()
    assert stamps.fault == ""
    for number in range(threads):
        times = np.frombuffer(stamps.take(number)[0], np.int64)
        assert len(times) == stamps.count(number) == 800
        assert (times != NO_TIME).all()
        assert (np.diff(times) >= -1000).all()  # rounded to floats of milliseconds


@both_stamps
def test_a_failed_event_ends_the_stamps_and_not_the_run(stamps_class: Any) -> None:
    class Broken:
        def record(self, stream: Any) -> None:
            raise RuntimeError("the device is gone")

    stamps = stamps_class(None, Broken, lambda device: device, lambda: 0, None, lambda *_: None, b"", 4, 0.0)
    for entry in (True, False) * 3:
        stamps.stamp_call(0, entry, 0, -1, -1, -1, 0)
    assert stamps.fault == "the device is gone"
    assert stamps.count(0) == 6
    with pytest.raises(RuntimeError, match="the device is gone"):
        stamps.prepare(0, None)


def test_a_backend_without_timed_events_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()

    def no_event(external: bool) -> Any:
        raise NotImplementedError("this backend has no timed events")

    machine.event = no_event  # type: ignore[method-assign]
    model = Works(machine, 1 * MS)
    trace = record(monkeypatch, machine, model, lambda: model(torch.zeros(1)))
    assert len(trace.calls) == 1
    assert trace.calls["device_ns"].isna().all()
    assert trace.facts["device_untimed"] == "this backend has no timed events"
    assert "No device times: this backend has no timed events" in notes_on(trace)


def test_clocks_with_device_times_are_known_to_the_trace() -> None:
    assert tuple(name for name, kind in CLOCKS.items() if kind.device) == DEVICE_CLOCKS


class Deep(nn.Module):
    """A model whose calls are three levels deep, most of them innermost."""

    def __init__(self, machine: FakeMachine, wide: int) -> None:
        super().__init__()
        layer = nn.Sequential(*[Works(machine, 1000) for _ in range(wide)])
        self.body = nn.Sequential(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


@every_way
def test_all_calls_of_some_frames_and_the_outer_ones_of_all(any_tap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model, x = Deep(machine, 30), torch.zeros(1)
    trace = record(monkeypatch, machine, model, lambda: [model(x) for _ in range(40)], budget=1e-6)
    sampling = trace.facts["device_sampling"]
    calls = trace.calls
    whole = calls["frame"].isin(sampling["frames"])
    assert 1 < len(sampling["frames"]) < 40
    assert sampling["every"] > 1
    assert calls[whole]["device_ns"].notna().all()
    assert calls[calls["depth"] < sampling["levels"]]["device_ns"].notna().all()
    left_out = calls[~whole & (calls["depth"] >= sampling["levels"])]
    assert len(left_out) > 0
    assert left_out["device_ns"].isna().all()
    # What a call took by itself is not known where the calls inside it were left out.
    assert calls[~whole & (calls["depth"] == sampling["levels"] - 1)]["device_self_ns"].isna().all()
    assert any(f"one frame in {sampling['every']:,}" in note for note in notes_on(trace))


def test_sums_over_sampled_frames_are_estimates_of_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    machine = FakeMachine()
    model, x = Deep(machine, 20), torch.zeros(1)
    trace = record(monkeypatch, machine, model, lambda: [model(x) for _ in range(60)], budget=1e-6)
    trace.save(tmp_path / "run.parquet")
    trace = tv.Trace.load(tmp_path / "run.parquet")
    inner = trace.calls[trace.calls["path"] == "model.body.0.0"]
    table = trace.table("module").set_index("module")
    mean = inner[inner["frame"].isin(trace.facts["device_sampling"]["frames"])]["device_ns"].mean()
    assert table["device_ns"]["model.body.0.0"] == pytest.approx(60 * mean, rel=0.01)
    every = trace.facts["device_sampling"]["every"]
    console = Console(width=200, file=io.StringIO())
    console.print(render_table(summarise(trace, "module"), "module"))
    assert f"Time by module; device time from one frame in {every:,}" in console.file.getvalue()  # type: ignore[attr-defined]
    assert table["device_ns"]["model"] == trace.calls[trace.calls["depth"] == 0]["device_ns"].sum()
    frames = trace.table("frame")
    top = trace.calls[trace.calls["depth"] == 0]
    assert frames["latency_ns"].dropna().sum() == pytest.approx(
        top["device_start_ns"].max() - top["device_start_ns"].min(), rel=0.1
    )


def test_every_call_is_stamped_where_that_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model, x = Deep(machine, 3), torch.zeros(1)
    trace = record(monkeypatch, machine, model, lambda: [model(x) for _ in range(20)], budget=1e6)
    assert "device_sampling" not in trace.facts
    assert trace.calls["device_ns"].notna().all()


def test_a_graph_that_is_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model, graph, x = Works(machine, 1 * MS), FakeGraph(machine), torch.zeros(1)

    def run() -> None:
        for _ in range(2):
            graph.capture_begin()
            model(x)
            graph.capture_end()
            for _ in range(2):
                graph.replay()
                time.sleep(0.01)

    trace = record(monkeypatch, machine, model, run)
    assert trace.facts["graph_replays"] == 4
    assert rounded(trace.calls) == [-1, 1, 1, -1, 1, 1]


def test_a_replay_inside_a_call_is_made_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    inner, graph, x = Works(machine, 4 * MS), FakeGraph(machine), torch.zeros(1)

    class Replays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            machine.devices[0].work(1 * MS)
            graph.replay()
            return x

    model = Replays()

    def run() -> None:
        graph.capture_begin()
        inner(x)
        graph.capture_end()
        for _ in range(2):
            machine.devices[0].work(50 * MS)  # so that the host runs ahead
            model(x)

    calls = record(monkeypatch, machine, model, run).calls
    assert calls["path"].tolist() == ["model.inner", *["model", "model.inner"] * 2]
    assert calls["parent"].fillna(-1).tolist() == [-1, -1, 1, -1, 3]
    assert calls["depth"].tolist() == [0, 0, 1, 0, 1]
    assert rounded(calls)[1:] == [5, 4, 5, 4]
    assert rounded(calls, "device_self_ns")[1:] == [1, 4, 1, 4]


def test_nothing_is_read_while_another_thread_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine([FakeDevice(), FakeDevice()])
    model, x = Works(machine, 0), torch.zeros(1)
    other = Works(machine, 0, device=1)
    both = nn.ModuleList([model, other])
    graph = FakeGraph(machine)
    queried = []
    query = type(machine.event(False)).query

    def counting_query(event: Any) -> bool:
        queried.append(machine.devices[1].capturing is not None)
        return bool(query(event))

    monkeypatch.setattr(type(machine.event(False)), "query", counting_query)

    def run() -> None:
        for _ in range(400):
            model(x)
        before = len(queried)
        with machine.select(1):
            graph.capture_begin()
        machine.current = 0
        for _ in range(400):
            model(x)
        with machine.select(1):
            other(x)
            graph.capture_end()
        assert len(queried) == before
        for _ in range(400):
            model(x)
        assert len(queried) > before

    trace = record(monkeypatch, machine, both, run, devices=(0, 1))
    assert True not in queried
    assert len(trace.calls) == 1201


def test_a_graph_replayed_from_two_streams_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model, graph, x = Works(machine, 1 * MS), FakeGraph(machine), torch.zeros(1)

    def run() -> None:
        graph.capture_begin()
        model(x)
        graph.capture_end()
        for stream in (0, 1, 0):
            machine.stream = stream
            graph.replay()

    trace = record(monkeypatch, machine, model, run)
    assert trace.facts["graph_stream_changes"] == 2
    assert any("on another stream" in note for note in notes_on(trace))


def test_replayed_calls_have_the_costs_of_the_captured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), torch.zeros(1, 4)
    machines = [machine, FakeMachine()]

    def run_on(made_up: FakeMachine) -> Callable[[], None]:
        graph = FakeGraph(made_up)

        def run() -> None:
            model(x)
            graph.capture_begin()
            model(x)
            graph.capture_end()
            for _ in range(2):
                graph.replay()
                time.sleep(0.005)

        return run

    timed = record(monkeypatch, machine, model, run_on(machines[0]))
    costs = tv.record(model, run_on(machines[1]), clock="none", measure="cost")
    joined = join(timed, costs)
    assert joined.calls["flops"].tolist() == [128, 64, 64] * 4
    assert joined.calls["bytes_read"].notna().all()
    # Kernels of captured calls run in the replays, and only there.
    busy = replace(costs, calls=costs.calls.assign(busy_ns=pd.array([30, 10, 20, 33, 11, 22], dtype="Int64")))
    assert join(timed, busy).calls["busy_ns"].fillna(-1).tolist() == [30, 10, 20, -1, -1, -1, *[33, 11, 22] * 2]


def test_all_calls_of_some_replays_and_the_outer_ones_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model, graph, x = Deep(machine, 12), FakeGraph(machine), torch.zeros(1)

    def run() -> None:
        graph.capture_begin()
        model(x)
        graph.capture_end()
        for _ in range(20):
            graph.replay()

    trace = record(monkeypatch, machine, model, run, budget=1e-6)
    calls = trace.calls[trace.calls["phase"] != "capture"]
    assert trace.facts["graph_replays"] == 20
    assert 2 < trace.facts["graph_replays_whole"] < 20
    assert len(calls) == 20 * 15
    assert calls[calls["depth"] < 2]["device_ns"].notna().all()
    timed = calls[calls["depth"] == 3].groupby("frame")["device_ns"].count()
    assert set(timed) == {0, 12}
    assert (timed == 12).sum() == trace.facts["graph_replays_whole"]
    # Each call stands behind the one that made it.
    paths = calls["path"].tolist()
    assert paths == paths[:15] * 20
    table = trace.table("module").set_index("module")
    assert table["device_ns"]["model.body.0.0"] == pytest.approx(20 * 1000, rel=0.1)
    assert any("of these replays" in note for note in notes_on(trace))
