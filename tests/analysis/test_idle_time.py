"""Time in no call, worked out by hand."""

from __future__ import annotations

from typing import Any

from sample_trace import call, make_trace
from torch import nn, ones

from talkerviz.analysis.idle_time import IdleTime, idle_time
from talkerviz.api import Trace
from talkerviz.recorder.record import record
from talkerviz.render.notes import notes_on

UNTIMED = {"host_start_ns": None, "host_ns": None, "host_self_ns": None}


def steps(*, run: int = 0, first: int = 0, began: int = 0, **more: Any) -> list[Any]:
    """Two steps of 100 ns, 30 of them in the net; in the second, another thread calls one of its modules as well."""
    return [
        call(first, None, 0, "net", "Net", 30, 10, run=run, host_start_ns=began, **more),
        call(first + 1, first, 1, "net.a", "A", 20, 20, run=run, host_start_ns=began + 5, **more),
        call(first + 2, None, 0, "net", "Net", 30, 30, run=run, host_start_ns=began + 100, frame=1, **more),
        call(first + 3, None, 0, "net.a", "A", 20, 20, run=run, host_start_ns=began + 105, frame=1, thread=1, **more),
        call(first + 4, None, 0, "net.a", "A", 10, 10, run=run, host_start_ns=began + 125, frame=1, thread=1, **more),
    ]


def test_between_the_outermost_calls() -> None:
    assert idle_time(make_trace(steps())) == IdleTime(idle_ns=70, span_ns=135)


def test_until_the_run_ends() -> None:
    ends = {"run_ends": [{"frame": 1, "ns": 200}]}
    assert idle_time(make_trace(steps(), **ends)) == IdleTime(idle_ns=70 + 65, span_ns=200)


def test_between_runs_is_nothing() -> None:
    two = make_trace([*steps(), *steps(run=1, first=5, began=10_000)], run_ends=[None, {"frame": 1, "ns": 10_200}])
    assert idle_time(two) == IdleTime(idle_ns=70 + 135, span_ns=135 + 200)
    assert idle_time(two.select(run=1)) == IdleTime(idle_ns=135, span_ns=200)


def test_a_part_does_not_tell() -> None:
    trace = make_trace(steps(), run_ends=[{"frame": 1, "ns": 200}])
    for part in (trace.select(module="net.a"), trace.select(depth=0)):
        assert idle_time(part) is None
    assert idle_time(trace.select(frame=0)) == IdleTime(idle_ns=0, span_ns=30)
    assert idle_time(make_trace(steps())) is not None
    assert idle_time(make_trace([row | UNTIMED for row in steps()])) is None
    assert idle_time(make_trace([])) is None


def test_a_device_that_is_behind_its_host_is_not_idle() -> None:
    trace = make_trace(steps())
    busy = trace.calls.assign(device_start_ns=trace.calls["host_start_ns"] * 3, device_ns=300)
    assert idle_time(Trace(busy, trace.modules, trace.facts)) == IdleTime(idle_ns=0, span_ns=675)


def test_the_note() -> None:
    assert notes_on(make_trace(steps())) == [
        "Of the 135 ns since the first call began 70 ns are in no row: backward, optimizers, sampling and all "
        "else that runs outside these modules."
    ]
    assert notes_on(make_trace(steps()[:1])) == []


def test_a_training_step() -> None:
    net = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    trace = record(net, lambda: net(ones(64, 256)).sum().backward())
    assert "backward" in notes_on(trace)[0]
