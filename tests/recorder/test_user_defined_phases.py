"""Phases that a program names while it is recorded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from taps import every_way
from thread_race import race
from torch import nn

import talkerviz as tv
from talkerviz.recorder.phases.talker import TalkerPhases

X = torch.ones(1, 2)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2))


def seen(trace: tv.Trace) -> list[tuple[str, str, int | None, int]]:
    """Path, phase, frame and run of each call of a module; phases without calls are rows as well."""
    calls = trace.calls[trace.calls["path"].astype(str) != trace.calls["phase"].astype(str)]
    frames = [None if frame < 0 else frame for frame in calls["frame"].fillna(-1)]
    return list(zip(calls["path"], calls["phase"], frames, calls["run"], strict=True))


@every_way
def test_calls_inside_have_the_phase_and_frames_go_on(any_tap: str) -> None:
    model = net()
    with tv.recording(model) as rec:
        model[0](X)
        with rec.phase("warmup"):
            model[0](X)
            model(X)
        model(X)
        model[0](X)
        with rec.phase("after"):
            model[0](X)
    assert seen(rec.trace) == [
        ("model.0", "forward", None, 0),
        ("model.0", "warmup", None, 0),
        ("model", "warmup", 0, 0),
        ("model.0", "warmup", 0, 0),
        ("model", "forward", 1, 0),
        ("model.0", "forward", 1, 0),
        ("model.0", "forward", 1, 0),
        ("model.0", "after", 1, 0),
    ]
    assert rec.trace.phases == ["forward", "warmup", "after"]
    assert len(rec.trace.select(phase="warmup").calls) == 3


@every_way
def test_the_innermost_holds_and_the_outer_one_comes_back(any_tap: str) -> None:
    model = net()
    with tv.recording(model) as rec, rec.phase("outer"):
        model[0](X)
        with rec.phase("inner"):
            model(X)
        model[0](X)
        with contextlib.suppress(KeyError), rec.phase("raises"):
            model[0](X)
            raise KeyError
        model[0](X)
    assert [row[1:3] for row in seen(rec.trace)] == [
        ("outer", None),
        ("inner", 0),
        ("inner", 0),
        ("outer", 0),
        ("raises", 0),
        ("outer", 0),
    ]


@every_way
def test_as_a_decorator_also_when_the_recording_is_over(any_tap: str) -> None:
    model = net()
    with tv.recording(model) as rec:

        @rec.phase("step")
        def step(x: torch.Tensor) -> torch.Tensor:
            """One step."""
            result: torch.Tensor = model[0](x)
            return result

        step(X)
        step(X)
        model[0](X)
    assert step.__doc__ == "One step."
    assert step(X).shape == (1, 2)
    assert [row[1] for row in seen(rec.trace)] == ["step", "step", "forward"]


@every_way
def test_with_runs(any_tap: str) -> None:
    model = net()
    with tv.recording(model) as rec:
        with rec.phase("warmup"), rec.run():
            model(X)
        with rec.run():
            with rec.phase("first"):
                model(X)
            model(X)
    assert [row for row in seen(rec.trace) if row[0] == "model"] == [
        ("model", "warmup", 0, 0),
        ("model", "first", 0, 1),
        ("model", "forward", 1, 1),
    ]


class Outer(nn.Module):
    """Names a phase in the middle of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Identity(), nn.Identity()
        self.rec: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        with self.rec.phase("middle"):
            x = self.two(x)
        return self.one(x)


@every_way
def test_inside_a_call(any_tap: str, tmp_path: Path) -> None:
    model = Outer()
    with tv.recording(model, file=tmp_path / "run.parquet") as rec:
        model.rec = rec
        model(X)
    assert [row[:3] for row in seen(rec.trace)] == [
        ("model", "forward", 0),
        ("model.one", "forward", 0),
        ("model.two", "middle", 0),
        ("model.one", "forward", 0),
    ]


@every_way
def test_in_place_of_a_talkers_phases(any_tap: str) -> None:
    model = nn.Module()
    model.forward = lambda x: x  # type: ignore[assignment]
    model.code_predictor = nn.Identity()
    with tv.recording(model, name="t", phases=TalkerPhases) as rec:
        with rec.phase("warmup"):
            model(X)
        model.code_predictor(X)
        model(X)
    # The step is told by the rule, whatever the phase is called.
    assert seen(rec.trace) == [
        ("t", "warmup", 0, 0),
        ("t.code_predictor", "predictor.decode", 0, 0),
        ("t", "decode", 1, 0),
    ]


@every_way
def test_other_threads(any_tap: str) -> None:
    model = net()

    def elsewhere(names: bool) -> None:
        if names:
            with rec.phase("own"):
                model(X)
        model[0](X)
        model(X)

    def wait_for(names: bool) -> None:
        thread = threading.Thread(target=elsewhere, args=(names,))
        thread.start()
        thread.join()

    with tv.recording(model) as rec:
        with rec.phase("mine"):
            wait_for(True)
            model[0](X)
        wait_for(False)
    phases = [
        (thread, phase) for thread, (_, phase, *_) in zip(rec.trace.calls["thread"], seen(rec.trace), strict=True)
    ]
    first = [phase for thread, phase in phases if thread == phases[0][0]]
    assert first == ["own", "own", "mine", "mine", "mine"]
    assert [phase for thread, phase in phases if thread == phases[-1][0]] == ["forward"] * 3
    assert phases[5][1] == "mine"


@every_way
def test_threads_that_name_theirs_at_the_same_time(any_tap: str) -> None:
    model = nn.Identity()
    names = ["first", "second", "third", "fourth"]

    def call(name: str) -> None:
        for _ in range(2000):
            with rec.phase(name):
                model(X)

    with tv.recording(model) as rec:
        race(call, names)
    counts = rec.trace.calls.groupby("thread", observed=True)["phase"].value_counts()
    assert sorted(phase for _, phase in counts[counts > 0].index) == sorted(names)
    assert set(counts[counts > 0]) == {2000}


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "\ud800"])
def test_a_name_that_is_none(name: str) -> None:
    model = net()
    with tv.recording(model) as rec:
        with pytest.raises(ValueError, match="give it a name that can be printed"), rec.phase(name):
            pass
        model(X)
    assert rec.trace.phases == ["forward"]


Step = Any  # "root", "part", ("phase", name, steps) or ("run", steps)
STEPS = st.recursive(
    st.lists(st.sampled_from(["root", "part"]), max_size=4),
    lambda steps: st.lists(
        st.one_of(
            st.sampled_from(["root", "part"]),
            st.tuples(st.just("phase"), st.sampled_from(["a", "b"]), steps),
            st.tuples(st.just("run"), steps),
        ),
        max_size=4,
    ),
    max_leaves=12,
)


class Expected:
    """What a program's calls should be, told by walking through it."""

    def __init__(self, steps: list[Step]) -> None:
        self.frame: int | None = None
        self.frames = self.run = self.runs = 0
        self.calls = list(self.walk(steps, "forward"))

    def walk(self, steps: list[Step], phase: str) -> Iterator[tuple[str, str, int | None, int]]:
        for step in steps:
            if step == "root":
                self.frame, self.frames = self.frames, self.frames + 1
                yield "model", phase, self.frame, self.run
            if step in ("root", "part"):
                yield "model.0", phase, self.frame, self.run
            elif step[0] == "phase":
                yield from self.walk(step[2], step[1])
            else:
                self.frame, self.frames, self.run, self.runs = None, 0, self.runs, self.runs + 1
                yield from self.walk(step[1], phase)


def perform(rec: tv.Recording, model: nn.Sequential, steps: list[Step]) -> None:
    for step in steps:
        if isinstance(step, str):
            (model if step == "root" else model[0])(X)
        elif step[0] == "phase":
            with rec.phase(step[1]):
                perform(rec, model, step[2])
        else:
            with rec.run():
                perform(rec, model, step[1])


@every_way
@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_program(any_tap: str, steps: list[Step]) -> None:
    model = net()
    with tv.recording(model) as rec:
        perform(rec, model, steps)
    assert seen(rec.trace) == Expected(steps).calls
