"""Latencies of frames, worked out by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from sample_trace import call, make_trace

from talkerviz.analysis.frame_latency import call_parts, frame_latencies, frame_summary
from talkerviz.analysis.summary import summarise
from talkerviz.api import Trace
from talkerviz.render.notes import headline

MS = 1_000_000
TALKER = {"scenario": {"frames": 3}}


def at(number: int, start: float, length: float, phase: str, frame: int | None, **more: Any) -> Any:
    path = "talker.code_predictor" if phase.startswith("predictor") else "talker"
    host = round(length * MS)
    start_ns = round(start * MS)
    return call(number, None, 0, path, "X", host, host, phase=phase, frame=frame, host_start_ns=start_ns, **more)


def frame(number: int, start: float, length: float, passes: int = 15) -> list[Any]:
    """Return a trace: a quarter of the time in the talker, half in the code predictor, the rest between its calls."""
    first = number * (passes + 1) + 1
    each = length / 2 / passes
    rows = [at(first, start, length / 4, "decode" if number else "prefill", number)]
    for step in range(passes):
        begin = start + length - length / 2 + step * each
        phase = "predictor.decode" if step else "predictor.prefill"
        rows.append(at(first + 1 + step, begin, each, phase, number, step=step))
    return rows


def spoken(*, more: list[Any] | None = None, **facts: Any) -> Trace:
    """Return a trace of 5 ms setup, 3 ms idle time, and frames of 100, 40, 20 and 30 ms."""
    rows = [at(0, 2, 5, "setup", None)]
    for number, (start, length) in enumerate([(10, 100), (110, 40), (150, 20), (170, 30)]):
        rows += frame(number, start, length)
    return make_trace([*rows, *(more or [])], root="talker", **(TALKER | facts))


def test_latencies() -> None:
    found = frame_latencies(spoken())
    assert found["frame"].tolist() == [0, 1, 2, 3]
    assert found["latency_ns"].tolist() == [100 * MS, 40 * MS, 20 * MS, 30 * MS]
    assert found["real_time_factor"].tolist() == pytest.approx([0.8, 2, 4, 80 / 30])
    assert found["codes_per_second"].tolist() == pytest.approx([160, 400, 800, 16 / 0.03])
    assert found["talker_ns"].tolist() == [25 * MS, 10 * MS, 5 * MS, 7.5 * MS]
    assert found["predictor_ns"].tolist() == pytest.approx([50 * MS, 20 * MS, 10 * MS, 15 * MS], abs=15)


def test_another_number_of_codes() -> None:
    rows = [row for number in range(3) for row in frame(number, 20 * number, 20, passes=7)]
    trace = make_trace(rows, root="talker", **TALKER, codes_a_frame=8)
    found = frame_latencies(trace)
    assert found["latency_ns"].tolist()[:2] == [20 * MS] * 2
    assert found["codes_per_second"].tolist()[:2] == pytest.approx([400, 400])
    summary = frame_summary(trace)
    assert summary is not None
    assert (summary.frames, summary.codes_per_second) == (3, pytest.approx(8 * 1e9 / summary.mean_ns))


def test_a_frame_of_another_models_speech() -> None:
    rows = [at(number, 20 * number, 15, "decode" if number else "prefill", number) for number in range(3)]
    trace = make_trace(rows, root="talker", frame_ns=10 * MS, codes_a_frame=4)
    found = frame_latencies(trace)
    assert found["real_time_factor"].tolist()[:2] == pytest.approx([0.5, 0.5])
    assert found["codes_per_second"].tolist()[:2] == pytest.approx([200, 200])
    summary = frame_summary(trace)
    assert summary is not None
    assert (summary.real_time_factor, summary.codes_per_second) == (pytest.approx(0.5), pytest.approx(200))


def test_summary() -> None:
    found = frame_summary(spoken())
    assert found is not None
    assert (found.runs, found.frames) == (1, 4)
    assert found.first_ns == (10 - 2 + 100) * MS
    assert found.mean_ns == 30 * MS
    assert found.max_ns == 40 * MS
    # Between 20, 30 and 40: at 0.5, 0.95 and 0.99 of the way.
    assert (found.p50_ns, found.p95_ns, found.p99_ns) == (30 * MS, 39 * MS, pytest.approx(39.8 * MS))
    assert found.jitter_ns == (20 + 10) / 2 * MS
    assert found.real_time_factor == pytest.approx(80 / 30)
    assert found.codes_per_second == pytest.approx(16 / 0.03)
    assert headline(found) == (
        "4 frames: the first after 108 ms, then 30.0 ms each (p50 30.0 ms, p95 39.0 ms, p99 39.8 ms, jitter 15.0 ms); "
        "2.67× real time, 533.3 codes/s"
    )


def test_what_runs_to_capture_a_graph_is_no_part_of_a_frame() -> None:
    rows = [
        *frame(0, 10, 40),
        at(17, 50, 500, "capture", None),
        *(row | {"call": row["call"] + 1} for row in frame(1, 600, 20)),
    ]
    assert frame_latencies(make_trace(rows, **TALKER))["latency_ns"].tolist() == [40 * MS, 20 * MS]


def test_what_follows_the_last_code_is_the_last_frames() -> None:
    embedding = at(99, 205, 1, "predictor.decode", 3, step=14)
    assert frame_latencies(spoken(more=[embedding]))["latency_ns"].tolist()[-1] == 36 * MS


def test_a_pass_after_the_last_frame_is_no_frame() -> None:
    trace = spoken(more=[at(99, 202, 9, "decode", 4)])
    latency = frame_latencies(trace)["latency_ns"]
    assert latency.tolist()[:4] == [100 * MS, 40 * MS, 20 * MS, 32 * MS]  # until that pass began
    assert latency[4] is pd.NA
    found = frame_summary(trace)
    assert found is not None
    assert found.frames == 4


@pytest.mark.parametrize(
    ("last", "counts"),
    [
        ({"step": 14}, True),
        ({"step": 13}, False),
        ({"step": 14, "error": "KeyboardInterrupt"}, False),
    ],
)
def test_a_frame_that_was_stopped_does_not_count(last: dict[str, Any], counts: bool) -> None:
    rows = [*frame(0, 0, 40), at(50, 40, 5, "decode", 1), at(51, 45, 5, "predictor.decode", 1, **last)]
    found = frame_summary(make_trace(rows, **TALKER))
    assert found is not None
    assert found.frames == (2 if counts else 1)


def test_of_selected_phases() -> None:
    trace = spoken()
    # A decode pass is followed by the next one a frame later; after the last one nothing says when the frame ended.
    decode = frame_latencies(trace.select(phase="decode"))
    assert decode["latency_ns"].tolist() == [40 * MS, 20 * MS, pd.NA]
    assert frame_summary(trace.select(phase="predictor.decode")) is None
    assert frame_summary(trace.select(phase="setup")) is None


def test_the_first_frame_alone() -> None:
    found = frame_summary(make_trace(frame(0, 0, 40), **TALKER))
    assert found is not None
    assert (found.frames, found.first_ns, found.mean_ns, found.jitter_ns) == (1, 40 * MS, None, None)
    assert headline(found) == "1 frame: the first after 40.0 ms"
    later = frame_summary(spoken().select(frame=2))
    assert later is not None
    assert (later.first_ns, later.mean_ns) == (None, 20 * MS)
    assert headline(later).startswith("1 frame: 20.0 ms each (p50 20.0 ms")


def test_another_model_makes_no_speech() -> None:
    rows = [at(n, 10 * n, 4, "forward", n, error="ValueError" if n == 3 else None) for n in range(4)]
    trace = make_trace(rows, run_ends=[{"frame": 3, "ns": 40 * MS}])
    found = frame_latencies(trace)
    assert found["latency_ns"].tolist() == [10 * MS, 10 * MS, 10 * MS, pd.NA]
    others = ["real_time_factor", "codes_per_second", "talker_ns", "predictor_ns"]
    assert found[others].isna().all(axis=None)
    summary = frame_summary(trace)
    assert summary is not None
    assert (summary.frames, summary.mean_ns, summary.jitter_ns) == (3, 10 * MS, 0)
    assert (summary.real_time_factor, summary.codes_per_second) == (None, None)
    assert headline(summary).endswith("jitter 0 ns)")
    assert call_parts(trace).unique().tolist() == ["forward"]


def calls_with_gaps(length: float, **facts: Any) -> Trace:
    """Five frames of another model, a call every 10 ms."""
    return make_trace([at(n, 10 * n, length, "forward", n) for n in range(5)], **facts)


def test_the_last_frame_lasts_until_the_run_ends() -> None:
    trace = calls_with_gaps(1, run_ends=[{"frame": 4, "ns": 52 * MS}])
    assert frame_latencies(trace)["latency_ns"].tolist() == [10 * MS] * 4 + [12 * MS]
    ahead = calls_with_gaps(1, run_ends=[{"frame": 4, "ns": 40 * MS}])  # the host, where a device was measured
    assert frame_latencies(ahead)["latency_ns"].tolist() == [10 * MS] * 4 + [1 * MS]
    # Of a part it is the end only if that has the run's last frame.
    early = Trace(trace.calls[:3], trace.modules, trace.facts)
    assert frame_latencies(early)["latency_ns"].tolist() == [10 * MS, 10 * MS, pd.NA]


def test_a_last_frame_of_which_the_end_is_not_known() -> None:
    found = frame_latencies(calls_with_gaps(1))
    assert found["latency_ns"].tolist() == [10 * MS] * 4 + [pd.NA]  # not 1 ms
    cut_short = frame_latencies(calls_with_gaps(1, run_ends=[None]))
    assert cut_short["latency_ns"].tolist() == found["latency_ns"].tolist()
    # Where nothing happens between calls the last one's end is the frame's.
    assert frame_latencies(calls_with_gaps(9.9))["latency_ns"].tolist() == [10 * MS] * 4 + [9.9 * MS]
    assert frame_latencies(calls_with_gaps(1).select(frame=2))["latency_ns"].tolist() == [1 * MS]


def test_calls_of_no_frame_cut_one_off() -> None:
    encoded = [at(2 * n + 1, 10 * n + 5, 4, "encode", None) for n in range(2)]
    passes = [at(2 * n, 10 * n, 4, "forward", n) for n in range(2)]
    rows = sorted([*encoded, *passes], key=lambda row: int(row["call"]))
    trace = make_trace(rows, run_ends=[{"frame": 1, "ns": 30 * MS}])
    assert frame_latencies(trace)["latency_ns"].tolist() == [4 * MS, 4 * MS]


def test_nothing_was_timed() -> None:
    nothing = {"host_start_ns": None, "host_ns": None, "host_self_ns": None}
    trace = make_trace([row | nothing for row in frame(0, 0, 40)], **TALKER)
    assert frame_latencies(trace).drop(columns=["run", "frame"]).isna().all(axis=None)
    assert frame_summary(trace) is None
    assert frame_summary(make_trace([])) is None


def test_times_of_the_device_come_first() -> None:
    trace = spoken()
    calls = trace.calls
    shifted = calls.assign(device_start_ns=calls["host_start_ns"] * 2, device_ns=calls["host_ns"] * 2)
    found = frame_summary(Trace(shifted, trace.modules, trace.facts))
    assert found is not None
    assert found.mean_ns == 60 * MS
    assert found.first_ns == (20 + 200 - 2) * MS  # from when the host began


def test_several_runs() -> None:
    trace = spoken()
    again = trace.calls.assign(run=1, call=trace.calls["call"] + 1000)
    again["host_start_ns"] = again["host_start_ns"] * 2 + 1000 * MS
    again["host_ns"] = again["host_ns"] * 2
    both = Trace(pd.concat([trace.calls.assign(run=0), again], ignore_index=True), trace.modules, trace.facts)
    latency = frame_latencies(both).set_index(["run", "frame"])["latency_ns"]
    assert latency[0].tolist() == [100 * MS, 40 * MS, 20 * MS, 30 * MS]
    assert latency[1].tolist() == [200 * MS, 80 * MS, 40 * MS, 60 * MS]
    found = frame_summary(both)
    assert found is not None
    assert (found.runs, found.frames) == (2, 8)
    assert found.first_ns == (108 + 216) / 2 * MS
    assert found.mean_ns == 45 * MS
    assert found.jitter_ns == (20 + 10 + 40 + 20) / 4 * MS
    assert headline(found).startswith("8 frames of 2 runs: the first after 162 ms")
    # A row of the table is a frame of every run.
    assert summarise(both, "frame")["latency_ns"].tolist() == [pd.NA, 150 * MS, 60 * MS, 30 * MS, 45 * MS]


def test_parts() -> None:
    by_part = summarise(spoken(), "part").set_index("part")
    assert by_part.index.tolist() == ["setup", "talker", "code predictor"]
    assert by_part["calls"].tolist() == [1, 4, 60]
    assert by_part["total_ns"].tolist() == pytest.approx([5 * MS, 47.5 * MS, 95 * MS], abs=60)
