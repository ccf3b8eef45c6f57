"""A made-up device that runs behind the host, on a clock of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter_ns
from typing import Any

import pytest
import torch
from torch import nn

import talkerviz as tv
from talkerviz.recorder.instruments.base import Instrument, RunContext
from talkerviz.recorder.instruments.cuda_graph_clock import CudaGraphClock
from talkerviz.recorder.instruments.device_clock import DeviceClock
from talkerviz.recorder.instruments.device_runtime import DeviceRuntime
from talkerviz.recorder.instruments.registry import CLOCKS, Kind

MS = 1_000_000  # nanoseconds


@dataclass
class FakeDevice:
    """Work is queued and done in order; its clock is 5 seconds off and a little fast."""

    drift: float = 1.0
    busy_until: int = 0  # host nanoseconds
    capturing: list[tuple[str, Any]] | None = None

    def clock(self, host_ns: int) -> float:
        return host_ns * self.drift + 5e9

    def work(self, ns: int) -> None:
        if self.capturing is not None:
            self.capturing.append(("work", ns))
        else:
            self.busy_until = max(self.busy_until, perf_counter_ns()) + ns


@dataclass
class FakeEvent:
    machine: FakeMachine
    external: bool
    passed: int | None = None  # host nanoseconds at which the device passes it
    device: FakeDevice | None = None

    def record(self, stream: tuple[int, int] | None = None) -> None:
        device = self.machine.devices[self.machine.current if stream is None else stream[0]]
        self.device = device
        if device.capturing is not None:
            if not self.external:
                raise RuntimeError("an internal event cannot be timed")
            device.capturing.append(("event", self))
        else:
            self.passed = device.busy_until = max(device.busy_until, perf_counter_ns())

    def query(self) -> bool:
        return self.passed is not None and self.passed <= perf_counter_ns()

    def synchronize(self) -> None:
        while not self.query():
            pass

    def elapsed_time(self, other: FakeEvent) -> float:
        assert self.device is other.device
        assert self.query()
        assert other.query(), "read before the device has passed it"
        return (self.device.clock(other.passed) - self.device.clock(self.passed)) / 1e6


@dataclass
class FakeMachine:
    devices: list[FakeDevice] = field(default_factory=lambda: [FakeDevice()])
    current: int = 0
    stream: int = 0  # streams of a device do their work in one order
    made: int = 0
    waits_allowed: bool = True
    external: bool = True

    def runtime(self, ring: int = 64) -> DeviceRuntime:
        return DeviceRuntime(
            event=self.event,
            stream_of=lambda device: (device, self.stream),
            current=lambda: self.current,
            synchronize=self.synchronize,
            capturing=lambda: self.devices[self.current].capturing is not None,
            ring=ring,
        )

    def event(self, external: bool) -> FakeEvent:
        if external and not self.external:
            raise RuntimeError("External events are disallowed in rocm")
        self.made += 1
        return FakeEvent(self, external)

    def synchronize(self, device: int) -> None:
        assert self.waits_allowed, "the run must not wait for the device"
        while perf_counter_ns() < self.devices[device].busy_until:
            pass

    @contextlib.contextmanager
    def select(self, device: int) -> Iterator[None]:
        before, self.current = self.current, device
        yield
        self.current = before


class FakeGraph:
    """As torch.cuda.CUDAGraph is used."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine

    def capture_begin(self) -> None:
        self.machine.devices[self.machine.current].capturing = []

    def capture_end(self) -> None:
        device = self.machine.devices[self.machine.current]
        self.steps, device.capturing = device.capturing, None

    def replay(self) -> None:
        device = self.machine.devices[self.machine.current]
        device.busy_until = max(device.busy_until, perf_counter_ns())
        for kind, step in self.steps:
            if kind == "work":
                device.busy_until += step
            else:
                step.passed = device.busy_until


class Works(nn.Module):
    def __init__(self, machine: FakeMachine, ns: int, *inner: nn.Module, device: int = 0) -> None:
        super().__init__()
        self.machine, self.ns, self.device = machine, ns, device
        self.inner = nn.ModuleList(inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.machine.select(self.device):
            for module in self.inner:
                x = module(x)
            self.machine.devices[self.device].work(self.ns)
        return x


def record(
    monkeypatch: pytest.MonkeyPatch,
    machine: FakeMachine,
    model: nn.Module,
    run: Any,
    devices: Any = (0,),
    budget: float = 0,
    **how: Any,
) -> Any:
    """Record with the made-up device's clock; `budget` is that of the clock, 0 for the time of every call."""

    def make(run: RunContext) -> list[Instrument]:
        device_clock = DeviceClock(replace(run, devices=devices), machine.runtime(), budget)
        return [device_clock, CudaGraphClock(run, device_clock, owner=FakeGraph)]

    monkeypatch.setitem(CLOCKS, "cuda", Kind(make))
    with tv.recording(model, clock="cuda", **how) as rec:
        machine.waits_allowed = False
        run()
        machine.waits_allowed = True
    return rec.trace


def captured(machine: FakeMachine, model: nn.Module, replays: int, wait: bool) -> Any:
    graph, x = FakeGraph(machine), torch.zeros(1)

    def run() -> None:
        graph.capture_begin()
        model(x)
        graph.capture_end()
        for _ in range(replays):
            graph.replay()
            if wait:  # as reading a result does
                time.sleep(0.02)

    return run
