"""Speedscope's JSON and collapsed stacks: golden files, and what speedscope's own page makes of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from golden_files import check_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from repo_paths import VIEWERS
from sample_trace import call, make_trace
from timelines import Tree, timeline_trace, trace_of, trees

from talkerviz.api import Trace
from talkerviz.render.registry import render

needs_speedscope = pytest.mark.skipif(
    not (VIEWERS / "node_modules").is_dir() or not shutil.which("node"),
    reason="needs node and `npm ci --prefix tests/viewers`",
)
NASTY = [
    'a"b',
    "Слой",
    "back\\slash",
    "two\nlines",
    "<b>&amp;",
    "日本語 😀",
    "semi;colon",
    "ends in 12",
    "",
    " ",
    "\x00\x1b",
    "#1",
]
Profile = dict[str, Any]


def reopened(name: str, profile: bytes) -> Profile:
    """Return speedscope's export after it has opened a file of this name."""
    done = subprocess.run(
        ["node", str(VIEWERS / "speedscope.mjs"), name], input=profile, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found: Profile = json.loads(done.stdout)
    return found


def events_of(file: Profile, profile: Profile) -> list[tuple[str, str, str | None, float]]:
    """Beginnings and ends by their frames' names and files, and the time since the profile began."""
    frames = file["shared"]["frames"]
    return [
        (
            event["type"],
            frames[event["frame"]]["name"],
            frames[event["frame"]].get("file"),
            event["at"] - profile["startValue"],
        )
        for event in profile["events"]
    ]


def check_nesting(profile: Profile) -> None:
    """As the format demands: in the order of time, what is begun ends, the innermost first."""
    going_on: list[int] = []
    now = profile["startValue"]
    for event in profile["events"]:
        assert event["at"] >= now
        now = event["at"]
        if event["type"] == "O":
            going_on.append(event["frame"])
        else:
            assert going_on.pop() == event["frame"]
    assert not going_on
    assert now <= profile["endValue"]


def stacks_of(text: str) -> dict[tuple[str, ...], int]:
    found = {}
    for line in text.splitlines():
        stack, _, micros = line.rpartition(" ")
        assert tuple(stack.split(";")) not in found
        found[tuple(stack.split(";"))] = int(micros)
    return found


def test_golden_speedscope() -> None:
    check_golden("timeline.speedscope.json", render(timeline_trace(), "speedscope").decode())


def test_golden_flamegraph() -> None:
    check_golden("timeline.flamegraph.txt", render(timeline_trace(), "flamegraph").decode())


def test_a_profile_for_each_phase_thread_and_run() -> None:
    rows = [
        call(place, None, 0, "net", "Net", 5, 5 + place, host_start_ns=10 * place, phase=phase, thread=place % 2)
        for place, phase in enumerate(["prefill", None, "decode", "decode", "decode"])
    ]
    file = json.loads(render(make_trace(rows), "speedscope"))
    assert [(profile["name"], len(profile["events"])) for profile in file["profiles"]] == [
        ("prefill · thread 0", 2), ("outside any phase · thread 1", 2),
        ("decode · thread 0", 4), ("decode · thread 1", 2),
    ]  # fmt: skip
    assert file["activeProfileIndex"] == 2


@settings(max_examples=examples(20), deadline=None)
@given(st.lists(trees, min_size=1, max_size=5), st.integers(1, 3))
def test_calls_lie_in_each_other(some: list[Tree], threads: int) -> None:
    trace = trace_of(some, ["net", "net.0"], threads)
    profiles = json.loads(render(trace, "speedscope"))["profiles"]
    for profile in profiles:
        check_nesting(profile)
    assert sum(len(profile["events"]) for profile in profiles) == 2 * len(trace.calls)
    begins = sorted(event["at"] for profile in profiles for event in profile["events"] if event["type"] == "O")
    assert begins == trace.calls["host_start_ns"].tolist()
    assert {profile["name"].partition(" · ")[0] for profile in profiles} <= {"prefill", "outside any phase"}


def test_time_of_what_was_not_selected() -> None:
    rows = [
        call(0, None, 0, "net", "Net", 90_000, 20_000, host_start_ns=0),
        call(1, 0, 1, "net.a", "A", 70_000, 40_000, host_start_ns=10_000),
        call(2, 1, 2, "net.a.b", "B", 30_000, 30_000, host_start_ns=20_000, phase="inner"),
        call(3, None, 0, "net", "Net", 400, 400, host_start_ns=100_000),
    ]
    trace = make_trace(rows)
    assert stacks_of(render(trace, "flamegraph").decode()) == {
        ("decode", "net Net"): 20, ("decode", "net Net", "a A"): 40, ("decode", "net Net", "a A", "b B"): 30
    }  # fmt: skip
    assert stacks_of(render(trace.select(depth=1), "flamegraph").decode()) == {
        ("decode", "net Net"): 20, ("decode", "net Net", "a A"): 70
    }  # fmt: skip
    # Without the calls around it.
    assert stacks_of(render(trace.select(phase="inner"), "flamegraph").decode()) == {("inner", "b B"): 30}
    (profile,) = json.loads(render(trace.select(phase="inner"), "speedscope"))["profiles"]
    assert [event["at"] for event in profile["events"]] == [20_000, 50_000]


def nasty_trace() -> Trace:
    rows = [
        # A profile without a name is given that of the file.
        call(place, None, 0, text, text, 5_000, 5_000, phase=text or "none", host_start_ns=10_000 * place)
        for place, text in enumerate(NASTY)
    ]
    return make_trace(rows, model="\n".join(NASTY))


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
@settings(deadline=None)
def test_any_names(texts: list[str]) -> None:
    rows = [
        call(place, None, 0, text, text, 5_000, 5_000, phase=text, host_start_ns=10_000 * place)
        for place, text in enumerate(texts)
    ]
    trace = make_trace(rows, model=texts[0])
    file = json.loads(render(trace, "speedscope"))
    assert [frame["file"] for frame in file["shared"]["frames"]] == list(dict.fromkeys(texts))
    assert {profile["name"] for profile in file["profiles"]} == set(texts)
    stacks = stacks_of(render(trace, "flamegraph").decode())
    assert {len(stack) for stack in stacks} == {2}
    assert sum(stacks.values()) == 5 * len(texts)


@needs_speedscope
@pytest.mark.parametrize("make", [timeline_trace, nasty_trace])
def test_speedscope_opens_it(make: Any) -> None:
    written = render(make(), "speedscope")
    ours, theirs = json.loads(written), reopened("trace.speedscope.json", written)
    assert theirs["name"] == ours["name"]
    assert theirs["activeProfileIndex"] == ours["activeProfileIndex"]
    for mine, found in zip(ours["profiles"], theirs["profiles"], strict=True):
        check_nesting(mine)
        assert (found["name"], found["unit"]) == (mine["name"], "nanoseconds")
        assert events_of(theirs, found) == events_of(ours, mine)


@needs_speedscope
def test_speedscope_refuses_what_is_wrong() -> None:
    wrong = json.loads(render(timeline_trace(), "speedscope"))
    del wrong["profiles"][0]["unit"]
    with pytest.raises(AssertionError, match="unit"):
        reopened("trace.speedscope.json", json.dumps(wrong).encode())
    wrong = json.loads(render(timeline_trace(), "speedscope"))
    wrong["profiles"][1]["events"].reverse()
    with pytest.raises(AssertionError, match="Failed to load"):
        reopened("trace.speedscope.json", json.dumps(wrong).encode())


@needs_speedscope
@pytest.mark.parametrize("make", [timeline_trace, nasty_trace])
def test_speedscope_opens_collapsed_stacks(make: Any) -> None:
    written = render(make(), "flamegraph")
    theirs = reopened("trace.txt", written)
    (profile,) = theirs["profiles"]
    found: dict[tuple[str, ...], int] = {}
    stack: list[str] = []
    now = 0
    for kind, name, _, at in events_of(theirs, profile):
        if at > now:
            found[tuple(stack)] = found.get(tuple(stack), 0) + int(at - now)
        now = int(at)
        stack = [*stack, name] if kind == "O" else stack[:-1]
    assert found == stacks_of(written.decode())
