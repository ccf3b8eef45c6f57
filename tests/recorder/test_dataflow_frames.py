"""Flows of which some frames were followed, against the same with all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flow_words import follow
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import talkerviz as tv
from talkerviz.api import Trace
from talkerviz.recorder.dataflow.followed_frames import FollowedFrames, following_changes_of

FRAMES = 40
X = torch.ones(1, 1, 8)


class Attends(nn.Module):
    """A step of attention with a cache that grows, or one that is there from the beginning."""

    def __init__(self, static: bool = False) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.static = static
        self.cache = torch.zeros(1, FRAMES, 8)
        self.length = 0

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        key = self.k(x)
        if self.static:
            self.cache[:, self.length : self.length + 1] = key
            self.length += 1
            past = self.cache[:, : self.length]
        else:
            past = key if past is None else torch.cat([past, key], 1)
        return nn.functional.scaled_dot_product_attention(self.q(x)[:, None], past[:, None], past[:, None])[:, 0], past


class Keeps(nn.Module):
    """What it gave last goes into the next, in another way from some frame on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.last: Tensor | None = None

    def forward(self, x: Tensor, both: bool = False) -> Tensor:
        made = self.a(x) if self.last is None else self.a(x) + self.last
        self.last = (self.b(made * self.last) if both and self.last is not None else made).tanh()
        return self.last


class TwoWays(nn.Module):
    """One of two layers, or both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, both: bool = False) -> Tensor:
        return self.b(self.a(x)) if both else self.a(x)


def grows(model: Any) -> None:
    x, past = X, None
    for _ in range(FRAMES):
        x, past = model(x, past)


def fills(model: Any) -> None:
    x = X
    for _ in range(FRAMES):
        x, _ = model(x)


def changes(model: Any) -> None:
    x = X
    for frame in range(FRAMES):
        x = model(x, frame >= 25)


def has_an_exception(model: Any) -> None:
    x = X
    for frame in range(FRAMES):
        x = model(x, frame == 25)


def takes_turns(model: Any) -> None:
    x = X
    for frame in range(FRAMES):
        x = model(x, frame % 2 == 1)


def trains(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(FRAMES):
        loss = model(torch.randn(3, 8), True).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def stacks_all(model: Any) -> None:
    made = []
    x = X
    for _ in range(FRAMES):
        x = model(x)
        made.append(x * 2)
    torch.stack(made).sum()


PROGRAMS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], None]]] = {
    "a cache that grows": (Attends, grows),
    "a cache that is filled": (lambda: Attends(static=True), fills),
    "a change": (TwoWays, changes),
    "an exception": (TwoWays, has_an_exception),
    "state across a change": (Keeps, changes),
    "state across an exception": (Keeps, has_an_exception),
    "turns": (TwoWays, takes_turns),
    "training": (TwoWays, trains),
    "all are stacked": (TwoWays, stacks_all),
}

ALONE = [name for name in PROGRAMS if "exception" not in name and name != "all are stacked"]


def recorded(make: Callable[[], nn.Module], run: Callable[[Any], None], measure: str | None = "flow") -> Trace:
    torch.manual_seed(0)
    model = make()
    grad = torch.enable_grad() if run is trains else torch.no_grad()
    with grad:
        return tv.record(model, lambda: run(model), measure=measure, clock="none" if measure else "cpu")


def all_followed(patch: pytest.MonkeyPatch, make: Callable[[], nn.Module], run: Callable[[Any], None]) -> Trace:
    seen = FollowedFrames._is_to_follow
    with patch.context() as within:
        within.setattr(FollowedFrames, "_is_to_follow", lambda self, loop: (seen(self, loop), True)[1])
        return recorded(make, run)


def frames_followed(trace: Trace) -> int:
    assert trace.flow is not None
    assert trace.flow.followed is not None
    kept = trace.flow.followed
    return int(((kept["until"] > kept["at"]) & ~kept["tail"]).sum())


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_the_same_as_with_all_frames(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, run = PROGRAMS[name]
    whole = all_followed(monkeypatch, make, run)
    with following_changes_of(recorded(make, run, None).calls):
        some = recorded(make, run)
    assert whole.flow is not None
    assert whole.flow.followed is None
    assert frames_followed(some) < FRAMES * 0.7
    assert some.flow == whole.flow
    assert some.render("mermaid") == whole.render("mermaid")
    assert some.render("mermaid", frame=12) == whole.render("mermaid", frame=12)


@pytest.mark.parametrize("name", ALONE)
def test_it_is_the_same_where_no_other_run_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, run = PROGRAMS[name]
    some = recorded(make, run)
    assert frames_followed(some) <= 12
    assert some.flow == all_followed(monkeypatch, make, run).flow


def test_a_change_that_nobody_foresaw_is_followed() -> None:
    trace = recorded(TwoWays, changes)
    assert trace.flow is not None
    ops = trace.flow.ops
    assert [len(ops[(ops["frame"] == frame).fillna(False)]) for frame in (10, 24, 25, 30, 39)] == [1, 1, 2, 2, 2]
    assert list(ops["kind"]).count("input") == 1  # the first frame's, and what was made in the meantime is none


def test_a_frame_that_was_not_followed_can_be_selected() -> None:
    trace = recorded(Attends, grows)
    one = trace.select(frame=12).flow
    assert one is not None
    assert list(one.ops["name"]) == ["linear", "cat", "linear", "scaled_dot_product_attention"]
    assert set(one.ops["call"]) <= set(trace.select(frame=12).calls["call"])
    assert [tensor.shape for tensor in one.ops["inputs"].iloc[3]] == [(1, 1, 1, 8), (1, 1, 13, 8), (1, 1, 13, 8)]
    assert "cache 2–40" in trace.render("mermaid")


def test_sizes_that_follow_no_line_stay_those_of_a_frame() -> None:
    def run(model: Any) -> None:
        for frame in range(FRAMES):
            model(torch.ones(1, 2 + frame % 2, 8))

    trace = recorded(TwoWays, run)
    assert trace.flow is not None
    assert {tensors[0].shape[1] for tensors in trace.flow.ops["outputs"]} <= {2, 3}


def test_most_of_the_run_is_watched_by_no_mode() -> None:
    watched = []

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            modes = (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack())  # type: ignore[no-untyped-call]
            watched.append(bool(modes))
            return self.a(x)

    model = Asks()
    follow(model, lambda: [model(X) for _ in range(1_000)])
    assert sum(watched) < 20
    assert watched[0]
    assert watched[64]  # to see how sizes grow
    assert not watched[500]
    assert not _get_current_dispatch_mode_stack()


def test_the_file_has_what_was_followed(tmp_path: Path) -> None:
    trace = recorded(Attends, grows)
    trace.save(tmp_path / "run.parquet")
    loaded = Trace.load(tmp_path / "run.parquet")
    assert loaded.flow is not None
    assert trace.flow is not None
    assert loaded == trace
    assert loaded.flow.followed is not None
    assert loaded.flow.followed.equals(trace.flow.followed)


def test_join_keeps_what_was_followed() -> None:
    joined = tv.join(recorded(Attends, grows, None), recorded(Attends, grows))
    assert joined.flow is not None
    assert joined.flow.followed is not None
