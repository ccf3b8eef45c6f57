"""Device time, memory, busy time and graphs: the reckoning on a made-up device, the rest on a real one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fake_cuda import MS, FakeDevice, FakeGraph, FakeMachine, Works, captured, record
from talker_parity import CONFIG, tiny_prompt
from torch import nn

import talkerviz as tv
from talkerviz.recorder import recording as recorder
from talkerviz.recorder.instruments.device_clock import device_columns
from talkerviz.recorder.instruments.kernel_time import busy_until_edges
from talkerviz.recorder.instruments.memory import DeviceMemory, _range_max
from talkerviz.recorder.instruments.registry import MEASURES, Kind
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.talker import Acceleration, build_talker, generate
from talkerviz.talker.generation.cuda_graphs import WARM_UPS


@pytest.mark.parametrize("drift", [1.0, 1.001])
def test_device_times(monkeypatch: pytest.MonkeyPatch, drift: float) -> None:
    machine = FakeMachine([FakeDevice(drift)])
    model = Works(machine, 2 * MS, Works(machine, 5 * MS), Works(machine, 1 * MS))
    x = torch.zeros(1)

    def run() -> None:
        machine.devices[0].work(300 * MS)  # so that the host, however slow, runs ahead
        for _ in range(3):
            model(x)

    calls = record(monkeypatch, machine, model, run).calls
    assert len(calls) == 9
    assert (calls["device_ns"] / MS).round(1).tolist() == [8, 5, 1] * 3
    assert (calls["device_self_ns"] / MS).round(1).tolist() == [2, 5, 1] * 3
    # The device began the third pass when it had done the first two.
    assert calls["host_start_ns"][6] < calls["device_start_ns"][6]
    assert calls["device_start_ns"][6] - calls["device_start_ns"][0] == pytest.approx(16 * MS, abs=MS / 10)
    for row in calls[calls["parent"].notna()].itertuples():
        assert calls["device_start_ns"][row.parent] <= row.device_start_ns + 1000


def test_events_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model, x = Works(machine, 0, Works(machine, 0)), torch.zeros(1)
    monkeypatch.setattr(recorder, "_BATCH", 64)
    trace = record(monkeypatch, machine, model, lambda: [model(x) for _ in range(2000)])
    assert len(trace.calls) == 4000
    assert trace.calls["device_ns"].notna().all()
    assert machine.made < 400


def test_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine([FakeDevice(), FakeDevice(1.002)])
    model = Works(machine, 1 * MS, Works(machine, 4 * MS, device=1), Works(machine, 2 * MS))
    x = torch.zeros(1)

    def run() -> None:
        for device in machine.devices:
            device.work(300 * MS)
        model(x)

    calls = record(monkeypatch, machine, model, run, devices=(0, 1)).calls
    assert (calls["device_ns"] / MS).round(1).tolist()[2] == 2
    # A call's events are on the device that is current outside it.
    assert calls["device_ns"].notna().all()


def test_a_device_that_was_not_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine([FakeDevice(), FakeDevice()])
    inner = Works(machine, 3 * MS, device=1)

    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with machine.select(1):
                return self.inner(x)

    model = Moves()
    calls = record(monkeypatch, machine, model, lambda: model(torch.zeros(1))).calls
    # Its clock is 5 s off.
    assert 3 * MS <= calls["device_ns"][1] < 2_000 * MS
    assert abs(calls["device_start_ns"][1] - calls["host_start_ns"][1]) < 2_000 * MS


def test_replays_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model = Works(machine, 1 * MS, Works(machine, 6 * MS), Works(machine, 2 * MS))
    originals = [FakeGraph.capture_begin, FakeGraph.capture_end, FakeGraph.replay]
    trace = record(monkeypatch, machine, model, captured(machine, model, 3, wait=True))
    assert [FakeGraph.capture_begin, FakeGraph.capture_end, FakeGraph.replay] == originals
    calls = trace.calls
    assert calls["path"].tolist() == ["model", "model.inner.0", "model.inner.1"] * 4
    assert calls["device_ns"][:3].isna().all()  # nothing runs while a graph is captured
    assert (calls["device_ns"][3:] / MS).round(1).tolist() == [9, 6, 2] * 3
    assert (calls["device_self_ns"][3:] / MS).round(1).tolist() == [1, 6, 2] * 3
    assert calls["host_ns"][3:].isna().all()
    assert calls["parent"].fillna(-1).tolist() == [-1, 0, 0, -1, 3, 3, -1, 6, 6, -1, 9, 9]
    assert calls["device_start_ns"][3:].is_monotonic_increasing
    assert calls["phase"].tolist() == ["capture"] * 3 + ["forward"] * 9
    assert calls["frame"].fillna(-1).tolist() == [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3
    assert trace.facts["graph_replays"] == 3


def test_a_replay_in_another_phase_is_of_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model, graph, x = Works(machine, 1 * MS), FakeGraph(machine), torch.zeros(1)

    def run() -> None:
        graph.capture_begin()
        model(x)
        graph.capture_end()
        model(x)
        for _ in range(2):
            time.sleep(0.02)
            graph.replay()

    calls = record(monkeypatch, machine, model, run).calls
    assert calls["phase"].tolist() == ["capture", "forward", "forward", "forward"]
    assert calls["frame"].fillna(-1).tolist() == [-1, 1, 1, 1]


def test_a_talkers_replays_are_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model: Any = build_talker(CONFIG)

    def capture(decode: Callable[[], None], changed: object, generators: object) -> FakeGraph:
        for _ in range(WARM_UPS):
            decode()
        graph = FakeGraph(machine)
        graph.capture_begin()
        decode()
        graph.capture_end()
        return graph

    prompt = tiny_prompt(model, None, prompt_tokens=11, text_tokens=9, seed=0)

    def speak() -> None:
        generate(model, prompt, 5, ignore_eos=True)

    plain = record(monkeypatch, machine, model, speak, name="talker", phases=TalkerPhases).calls
    monkeypatch.setattr(sys.modules["talkerviz.talker.generation.generate"], "capture", capture)
    model.acceleration = Acceleration(graphs=True)
    rule = partial(TalkerPhases, warm_ups=WARM_UPS)
    replayed = record(monkeypatch, machine, model, speak, name="talker", phases=rule)
    assert replayed.facts["graph_replays"] == 4
    spoken = replayed.calls[~replayed.calls["phase"].isin(["warmup", "capture"])]
    assert spoken["frame"].dropna().unique().tolist() == [0, 1, 2, 3, 4]
    for frame in range(1, 5):
        one, two = (calls[calls["frame"] == frame] for calls in (plain, spoken))
        # The last code's embedding is looked up at the frame's end, also that of the last, which no frame follows.
        looked_up = "talker.code_predictor.model.codec_embedding.14"
        for column in ("path", "phase", "step"):
            ran, again = (
                calls[calls["path"] != looked_up][column].astype(object).fillna(-1).tolist() for calls in (one, two)
            )
            assert ran == again
        assert two["path"].tolist().count(looked_up) == 1
        assert two["host_ns"].isna().all()
        assert two["device_ns"].notna().all()


def test_replays_that_the_host_does_not_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    model = Works(machine, 20 * MS)
    trace = record(monkeypatch, machine, model, captured(machine, model, 3, wait=False))
    assert trace.facts["graph_replays"] == 3
    assert (trace.calls["device_ns"] / MS).round(1).fillna(-1).tolist() == [-1, 20, 20, 20]


def test_where_graphs_cannot_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(external=False)
    model = Works(machine, 1 * MS)
    trace = record(monkeypatch, machine, model, captured(machine, model, 2, wait=True))
    assert len(trace.calls) == 1
    assert trace.facts["graphs_untimed"] == "External events are disallowed in rocm"


def test_self_time_where_some_calls_have_none() -> None:
    calls = pd.DataFrame({"parent": pd.array([pd.NA, 0, 0], dtype="Int64")})
    columns = device_columns(calls, np.zeros(3), np.array([10, 4, 3]), np.array([True, True, False]))
    assert pd.Series(columns["device_self_ns"]).fillna(-1).tolist() == [6, 4, -1]


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator whose calls allocate and free as they are told."""
    state = {"now": 1000, "peak": 1000}

    def allocate(change: int) -> None:
        state["now"] += change
        state["peak"] = max(state["peak"], state["now"])

    def read_and_reset(device: int) -> tuple[int, int]:
        found = state["now"], state["peak"]
        state["peak"] = state["now"]
        return found

    class Allocates(nn.Module):
        def __init__(self, changes: list[int], *inner: nn.Module) -> None:
            super().__init__()
            self.changes, self.inner = changes, nn.ModuleList(inner)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for module in self.inner:
                module(x)
            for change in self.changes:
                allocate(change)
            return x

    model = Allocates([10, -5], Allocates([100, -100]), Allocates([30, 20, -10]))
    kind = Kind(lambda run: [DeviceMemory(replace(run, devices=(0,)), read_and_reset)])
    monkeypatch.setitem(MEASURES, "memory", kind)
    with tv.recording(model, measure="memory") as rec:
        for _ in range(2):
            model(torch.zeros(1))
    calls = rec.trace.calls
    assert calls["memory_peak_bytes"].tolist() == [100, 100, 50] * 2
    assert calls["memory_delta_bytes"].tolist() == [45, 0, 40] * 2


def test_range_max() -> None:
    values = np.random.default_rng(0).integers(0, 1000, 300)
    begin = np.random.default_rng(1).integers(0, 300, 500)
    end = np.minimum(begin + np.random.default_rng(2).integers(0, 300, 500), 300)
    expected = [values[b:e].max() if e > b else 0 for b, e in zip(begin, end, strict=True)]
    assert _range_max(values, begin, end).tolist() == expected


def test_busy_time_from_a_profile() -> None:
    def note(at: float) -> dict[str, Any]:
        return {"cat": "user_annotation", "name": "talkerviz edge", "ts": at, "dur": 0.1, "tid": 7}

    def kernel(
        at: float, time: float, number: int, thread: int = 7, kind: str = "kernel", stream: int | None = None
    ) -> list[dict[str, Any]]:
        where = {"device": 0, "stream": number if stream is None else stream}
        return [
            {
                "cat": "cuda_runtime",
                "name": "cudaLaunchKernel",
                "ts": at,
                "tid": thread,
                "args": {"correlation": number},
            },
            {"cat": kind, "name": "k", "ts": at + 50, "dur": time, "tid": 0, "args": {"correlation": number, **where}},
        ]

    events = [
        *kernel(0.5, 100.0, 1),  # before all calls
        note(1), note(2), *kernel(3, 10.5, 2), *kernel(3.5, 1.5, 3, kind="gpu_memcpy"), note(4),
        *kernel(5, 2.25, 4), note(6), *kernel(2.5, 999.0, 5, thread=8),
        {"cat": "gpu_user_annotation", "name": "talkerviz edge", "ts": 60, "tid": 0},
        {"cat": "kernel", "name": "k", "ts": 9, "dur": 5.0, "tid": 0, "args": {"correlation": 99}},
        {"ph": "M", "name": "process_name"},
    ]  # fmt: skip
    until = busy_until_edges({"traceEvents": events})
    assert until.tolist() == [100_000, 100_000, 112_000, 114_250]
    assert busy_until_edges({"traceEvents": []}).tolist() == []
    with pytest.raises(RuntimeError, match="saw 1 kernels, and none of them launched by the thread of the calls"):
        busy_until_edges({"traceEvents": [note(1), *kernel(2, 3.0, 1, thread=8), note(4)]})
    # The second begins before the first of its stream has ended, and waits for it.
    early = [note(1), *kernel(2, 30.0, 1, stream=7), note(3), *kernel(4, 40.0, 2, stream=7), note(5)]
    assert busy_until_edges({"traceEvents": early}).tolist() == [0, 30_000, 42_000]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "cuda"}, "clock 'cuda' needs a model on a CUDA device"),
        ({"measure": "memory"}, "'memory' needs a model on a CUDA device"),
        ({"measure": "busy"}, "'busy' needs a model on a CUDA device"),
        ({"measure": "joy"}, "cannot measure 'joy': choose from cost, memory, busy"),
    ],
)
def test_what_is_not_possible_here(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message), tv.recording(nn.ReLU(), **options):
        pass


class Products(nn.Module):
    def __init__(self, size: int, times: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, size, device="cuda"))
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = x @ self.weight
        return x


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnDevice:
    def model(self) -> nn.Sequential:
        return nn.Sequential(Products(4096, 1), Products(4096, 10))

    @torch.no_grad()
    def test_device_time_is_the_device_s(self) -> None:
        model, x = self.model(), torch.zeros(4096, 4096, device="cuda")
        model(x)
        torch.cuda.synchronize()
        calls = tv.record(model, lambda: [model(x) for _ in range(3)], clock="cuda").calls
        one, ten = (calls[calls["path"] == f"model.{n}"]["device_ns"].median() for n in (0, 1))
        assert 6 < ten / one < 14
        assert (calls["host_ns"] < calls["device_ns"]).any()  # launching does not wait
        top = calls[calls["depth"] == 0]
        assert (top["device_start_ns"].diff().dropna() > 0).all()
        assert (top["device_start_ns"] >= top["host_start_ns"] - 100_000).all()

    @torch.no_grad()
    def test_replays_of_a_graph(self) -> None:
        model, x = self.model(), torch.zeros(4096, 4096, device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            model(x)
        torch.cuda.synchronize()

        def run() -> None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                model(x)
            for _ in range(4):
                graph.replay()
                torch.cuda.synchronize()

        trace = tv.record(model, run, clock="cuda")
        assert trace.facts["graph_replays"] == 4
        calls = trace.calls
        replayed = calls[calls["host_ns"].isna()]
        assert len(replayed) == 12
        eager = tv.record(model, lambda: model(x), clock="cuda").calls
        for path in ("model.0", "model.1"):
            expected = eager[eager["path"] == path]["device_ns"].iloc[0]
            assert replayed[replayed["path"] == path]["device_ns"].median() == pytest.approx(expected, rel=0.25)

    @torch.no_grad()
    def test_memory_of_a_call(self) -> None:
        model, x = self.model(), torch.zeros(4096, 4096, device="cuda")
        model(x)
        calls = tv.record(model, lambda: model(x), measure="memory").calls
        size = 4096 * 4096 * 4
        by_path = calls.set_index("path")
        assert by_path["memory_peak_bytes"]["model.0"] == size
        assert by_path["memory_peak_bytes"]["model.1"] == 2 * size
        assert by_path["memory_delta_bytes"]["model.1"] == size

    @torch.no_grad()
    def test_busy_time(self) -> None:
        model, x = self.model(), torch.zeros(4096, 4096, device="cuda")
        model(x)
        busy = tv.record(model, lambda: model(x), measure="busy").calls.set_index("path")["busy_ns"]
        device = tv.record(model, lambda: model(x), clock="cuda").calls.set_index("path")["device_ns"]
        for path in ("model", "model.0", "model.1"):
            assert 0.5 < busy[path] / device[path] < 1.1
