"""Perfetto's JSON: a golden file, nesting whatever the calls, and what Perfetto's own trace processor finds in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_files import check_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from perfetto_processor import ARGS, FLOWS, PROBLEMS, TRACKS, needs_perfetto, rows_of
from sample_trace import call, make_trace, sample_trace
from timelines import Tree, timeline_trace, trace_of, trees

from talkerviz.api import Trace
from talkerviz.render.charts.graphviz import RenderError
from talkerviz.render.registry import render
from talkerviz.render.viewers.common import lanes
from talkerviz.trace import TensorInfo

Event = dict[str, Any]


def events_of(trace: Trace) -> list[Event]:
    found: list[Event] = json.loads(render(trace, "perfetto"))["traceEvents"]
    return found


def slices_of(events: list[Event], category: str) -> list[Event]:
    return [event for event in events if event["ph"] == "X" and event["cat"] == category]


def ns(event: Event) -> tuple[int, int]:
    """Return a slice's start and end, which must be there to the nanosecond."""
    start, took = event["ts"] * 1000, event["dur"] * 1000
    assert abs(start - round(start)) < 0.01
    return round(start), round(start) + round(took)


def depths(slices: list[Event]) -> list[int]:
    """How deep each slice is in its track, by its times alone; fails where two overlap."""
    found = []
    ends: dict[tuple[int, int], list[int]] = {}
    for event in slices:
        start, end = ns(event)
        around = ends.setdefault((event["pid"], event["tid"]), [])
        while around and around[-1] <= start:
            around.pop()
        assert not around or end <= around[-1], f"{event} overlaps"
        found.append(len(around))
        around.append(end)
    return found


def test_golden() -> None:
    check_golden("timeline.perfetto.json", render(timeline_trace(), "perfetto").decode())


def test_what_was_not_measured_is_left_out() -> None:
    events = events_of(sample_trace())
    assert {event["pid"] for event in events} == {1}
    assert not {"flops", "device_ns", "busy_ns"} & {name for event in events for name in event["args"]}
    measured = {event["args"]["call"]: event["args"] for event in slices_of(events_of(timeline_trace()), "call")}
    assert "flops" not in measured[0]
    assert (measured[0]["bytes_read"], measured[1]["flops"]) == (0, 12_345_678_901)


def test_without_times() -> None:
    untimed = make_trace([call(0, None, 0, "net", "Net", 0, 0, host_start_ns=None, host_ns=None, host_self_ns=None)])
    for fmt in ("perfetto", "speedscope", "flamegraph"):
        for trace in (untimed, make_trace([])):
            with pytest.raises(RenderError, match=f"^{fmt} needs times, and this trace has none: [^\n]*$"):
                render(trace, fmt)


def test_arrows() -> None:
    trace = timeline_trace()
    kinds = [
        (event["name"], event["id"], event["ph"], event["ts"]) for event in events_of(trace) if event["ph"] in "sf"
    ]
    assert [kind for kind in kinds if kind[0] == "tensor"] == [("tensor", 0, "s", 1.7), ("tensor", 0, "f", 7.701)]
    on_device = trace.calls["device_ns"].notna()
    assert [kind[1] for kind in kinds if kind[0] == "device" and kind[2] == "s"] == [*trace.calls["call"][on_device]]


@settings(max_examples=examples(20), deadline=None)
@given(st.lists(trees, min_size=1, max_size=5), st.integers(1, 3))
def test_slices_lie_in_each_other_as_calls_do(some: list[Tree], threads: int) -> None:
    trace = trace_of(some, ["net", "net.0"], threads)
    events = events_of(trace)
    slices = slices_of(events, "call")
    assert [event["args"]["call"] for event in slices] == trace.calls["call"].tolist()
    assert depths(slices) == trace.calls["depth"].tolist()
    assert [ns(event)[0] for event in slices] == trace.calls["host_start_ns"].tolist()
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert named == {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"}
    for column in ("phase", "frame"):
        segments = slices_of(events, column)
        assert set(depths(segments)) <= {0}
        for event in slices:
            inside = [
                one["args"][column]
                for one in segments
                if one["tid"] // 10 == event["tid"] // 10 and ns(one)[0] <= ns(event)[0] and ns(event)[1] <= ns(one)[1]
            ]
            assert inside == ([event["args"][column]] if column in event["args"] else [])


def test_a_phase_inside_another() -> None:
    rows = [
        call(0, None, 0, "net", "Net", 90, 0, host_start_ns=0),
        call(1, 0, 1, "net.a", "A", 10, 10, host_start_ns=5),
        call(2, 0, 1, "net.b", "B", 10, 10, host_start_ns=20, phase="inner"),
        call(3, 0, 1, "net.b", "B", 10, 10, host_start_ns=35, phase="inner"),
        call(4, 0, 1, "net.a", "A", 10, 10, host_start_ns=50),
        call(5, 0, 1, "net.b", "B", 10, 10, host_start_ns=65, phase="inner"),
        call(6, None, 0, "net", "Net", 10, 10, host_start_ns=100),
    ]
    slices = slices_of(events_of(make_trace(rows)), "phase")
    assert [(event["name"], *ns(event)) for event in slices] == [
        ("decode", 0, 110), ("inner", 20, 45), ("inner", 65, 75)
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=20))
def test_lanes(intervals: list[tuple[int, int]]) -> None:
    start, length = np.array(intervals, dtype=np.int64).reshape(-1, 2).T
    lane = lanes(start, start + length)
    for one in range(len(start)):
        for two in range(one):
            if lane[one] == lane[two]:
                # The one that begins first, of those that begin together the longer one.
                (_, first_end), (begin, end) = sorted(
                    ((start[row], start[row] + length[row]) for row in (one, two)),
                    key=lambda found: (found[0], -found[1]),
                )
                assert first_end <= begin or end <= first_end
    assert not len(lane) or set(lane) == set(range(lane.max() + 1))


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_any_names(texts: list[str]) -> None:
    rows = [
        call(number, None, 0, text, text, 5, 5, phase=text, error=text, host_start_ns=10 * number)
        for number, text in enumerate(texts)
    ]
    events = events_of(make_trace(rows, model=texts[0]))
    found = [
        (event["args"]["path"], event["args"]["class"], event["args"]["error"]) for event in slices_of(events, "call")
    ]
    assert found == [(text, text, text) for text in texts]
    assert [event["name"] for event in slices_of(events, "phase")] == [
        text for place, text in enumerate(texts) if place == 0 or texts[place - 1] != text
    ]


def test_a_name_that_is_no_text() -> None:
    odd = TensorInfo("\ud800", (1,), "float32", "cpu")
    events = events_of(make_trace([call(0, None, 0, "net", "Net", 5, 5, inputs=(odd,))]))
    assert slices_of(events, "call")[0]["args"]["inputs"] == ["?: 1 float32 cpu"]


@needs_perfetto
def test_perfetto_opens_it(tmp_path: Path) -> None:
    trace = timeline_trace()
    problems, tracks, args, flows, order = rows_of(
        trace, tmp_path, PROBLEMS, TRACKS, ARGS, FLOWS, "SELECT name FROM thread WHERE name != '' ORDER BY tid, upid"
    )
    assert problems == []
    assert [name for (name,) in order] == [
        "frames",
        "phases",
        "thread 0",
        "calls of thread 0",
        "calls of thread 0, lane 2",
    ]
    calls = trace.calls.set_index("call")
    by_set: dict[int, Event] = {}
    for number, key, value in args:
        by_set.setdefault(number, {})[key.removeprefix("args.")] = value

    on_host = [
        (name, thread, depth, ts, dur, by_set[of])
        for _, thread, name, kind, depth, ts, dur, of in tracks
        if kind == "call"
    ]
    assert [found[-1]["call"] for found in on_host] == calls.index.tolist()
    for name, thread, depth, ts, dur, found in on_host:
        row = calls.loc[found["call"]]
        assert (thread, depth, ts, dur) == ("thread 0", row["depth"], row["host_start_ns"], row["host_ns"])
        assert name.endswith(f" {row['class']}")
        assert (found["path"], found["class"], found["phase"]) == (row["path"], row["class"], row["phase"])
        assert found["host_self_ns"] == row["host_self_ns"]
        for which in ("inputs", "outputs"):
            for place, tensor in enumerate(row[which]):
                text = f"{tensor.name}: {tensor.shape_text} {tensor.dtype} {tensor.device}"
                assert found[f"{which}[{place}]"] == text
    assert on_host[8][-1]["outputs[1]"] == "aux: 2 float32 cpu"
    assert on_host[10][-1]["error"] == "ValueError"

    device = [
        (by_set[of]["call"], ts, dur)
        for process, *_, kind, _, ts, dur, of in tracks
        if kind == "device" and process == "device"
    ]
    timed = calls[calls["device_ns"].notna()]
    assert sorted(device) == [*zip(timed.index, timed["device_start_ns"], timed["device_ns"], strict=True)]

    above = [
        (thread, name, ts, ts + dur) for _, thread, name, kind, _, ts, dur, _ in tracks if kind in ("frame", "phase")
    ]
    assert sorted(above) == [
        ("frames", "frame 0", 1_000, 10_000), ("frames", "frame 1", 10_100, 13_100),
        ("phases", "decode", 1_000, 10_000), ("phases", "decode", 10_100, 13_100), ("phases", "setup", 0, 500),
    ]  # fmt: skip
    assert sorted(flows) == sorted([*([n, "call", n, "device"] for n in timed.index), [3, "call", 8, "call"]])


@needs_perfetto
def test_perfetto_keeps_names_and_nanoseconds(tmp_path: Path) -> None:
    texts = [
        'a"b',
        "Слой.слой-ä",
        "back\\slash",
        "new\nline",
        "<b>&amp;",
        "%s {x}",
        "日本語 😀",
        "tab\there",
        "/slash",
        " ",
    ]
    rng = np.random.default_rng(0)
    starts = np.cumsum(rng.integers(10_000, 10**10, 1_000)).tolist()
    rows = [
        call(place, None, 0, text, "K", 1 + place * 997 % 9_973, 1, host_start_ns=start, phase=text)
        for place, (start, text) in enumerate(zip(starts, texts * 100, strict=True))
    ]
    trace = make_trace(rows)
    problems, found = rows_of(
        trace,
        tmp_path,
        PROBLEMS,
        "SELECT EXTRACT_ARG(arg_set_id, 'args.path'), ts, dur FROM slice WHERE category = 'call'",
    )
    assert problems == []
    assert [row[1:] for row in found] == [list(row) for row in zip(starts, trace.calls["host_ns"], strict=True)]
    for (path, *_), text in zip(found, trace.calls["path"], strict=True):
        # Perfetto 52 leaves what is escaped in a string as it is, unless a quote is.
        assert path in (text, json.dumps(text, ensure_ascii=False)[1:-1])
        assert path == text or "\\" in path


@needs_perfetto
@settings(max_examples=3, deadline=None)
@given(some=st.lists(trees, min_size=3, max_size=6))
def test_perfetto_nests_as_calls_do(tmp_path_factory: pytest.TempPathFactory, some: list[Tree]) -> None:
    trace = trace_of(some, ["net"], threads=2)
    problems, found = rows_of(
        trace,
        tmp_path_factory.mktemp("perfetto"),
        PROBLEMS,
        """SELECT EXTRACT_ARG(s.arg_set_id, 'args.call') AS call, EXTRACT_ARG(p.arg_set_id, 'args.call'), s.depth
        FROM slice s LEFT JOIN slice p ON s.parent_id = p.id WHERE s.category = 'call' ORDER BY call""",
    )
    assert problems == []
    parents = [
        None if parent is None else int(parent)
        for parent in trace.calls["parent"].astype(object).where(trace.calls["parent"].notna(), None)
    ]
    assert found == [list(row) for row in zip(trace.calls["call"], parents, trace.calls["depth"], strict=True)]
