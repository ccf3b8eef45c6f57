"""Ranks put together: their clocks, who waits for whom, and how that is shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from command_line import Capture, talkerviz
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from nasty_text import NASTY
from perfetto_processor import ARGS, FLOWS, PROBLEMS, TRACKS, needs_perfetto, rows_of
from rank_traces import Meeting, meeting, rank_traces
from sample_trace import call, make_trace, sample_trace

from talkerviz.analysis.collective_waits import collective_waits, waits_by_rank
from talkerviz.analysis.frame_latency import frame_latencies
from talkerviz.analysis.stragglers import missing_ranks, stragglers
from talkerviz.api import Trace
from talkerviz.flowchart.builder import build_graph
from talkerviz.render.notes import notes_on
from talkerviz.render.options import RenderOptions
from talkerviz.render.registry import render
from talkerviz.trace.calls_table import calls_frame
from talkerviz.trace.flow import Flow, edges_frame, ops_frame
from talkerviz.trace.merge import merge

SECOND = 1_000_000_000


def late(rank: int, ranks: int, meetings: int = 6, by: int = 4_000, **more: Any) -> list[Meeting]:
    """One rank comes so much later than the others, each time."""
    return [
        meeting([10_000 * (n + 1) + (by if one == rank else 10 * one) for one in range(ranks)], 300, **more)
        for n in range(meetings)
    ]


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Meeting], list[int]]:
    """Meetings of a few ranks, and how far their clocks are ahead."""
    ranks = draw(st.integers(2, 5))
    now, meetings = 0, []
    for _ in range(draw(st.integers(1, 6))):
        came = [now + draw(st.integers(200, 50_000)) for _ in range(ranks)]
        left = [max(came) + draw(st.integers(0, 5_000)) for _ in range(ranks)]
        kinds = st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier"])
        meetings.append(Meeting(tuple(came), tuple(left), draw(kinds)))
        now = max(left) + 200
    return meetings, [draw(st.integers(-(10**12), 10**12)) for _ in range(ranks)]


@settings(max_examples=examples(25), deadline=None)
@given(runs())
def test_clocks_by_collectives_alone(run: tuple[list[Meeting], list[int]]) -> None:
    meetings, ahead = run
    clocks = merge(rank_traces(meetings, ahead)).facts["clocks"]
    # Whatever is known is no more wrong than is said; all began at once.
    wrong = [shift - clocks["shift_ns"][0] for shift in clocks["shift_ns"]]
    assert clocks["by"] == ["collectives"]
    assert all(abs(one) <= error + 1 for one, error in zip(wrong, clocks["error_ns"], strict=True))
    # Of the first and another, the least time in which both came and both went says it.
    for rank in range(1, len(ahead)):
        least = (
            min(one.left[0] - one.came[rank] for one in meetings),
            min(one.left[rank] - one.came[0] for one in meetings),
        )
        assert clocks["error_ns"][rank] <= sum(least) / 2 + 1
    assert clocks["early_ns"] <= 2 * max(clocks["error_ns"]) + 1


@settings(max_examples=examples(25), deadline=None)
@given(runs(), st.lists(st.integers(-3_000, 3_000), min_size=5, max_size=5))
def test_clocks_by_an_exchange(run: tuple[list[Meeting], list[int]], errors: list[int]) -> None:
    meetings, ahead = run
    errors = [0, *errors][: len(ahead)]
    clocks = merge(rank_traces(meetings, ahead, errors=errors)).facts["clocks"]
    wrong = [shift - clocks["shift_ns"][0] for shift in clocks["shift_ns"]]
    assert "exchange" in clocks["by"]
    for one, error, asked in zip(wrong, clocks["error_ns"], errors, strict=True):
        assert abs(one) <= error + 1
        assert error <= abs(asked) + 1  # collectives make it no worse


@settings(max_examples=examples(25), deadline=None)
@given(runs())
def test_one_host_has_one_clock(run: tuple[list[Meeting], list[int]]) -> None:
    meetings, ahead = run
    traces = rank_traces(meetings, ahead, hosts=["here"] * len(ahead))
    clocks = merge(traces).facts["clocks"]
    assert clocks["by"] == ["one host's clock"]
    assert clocks["error_ns"] == [0] * len(ahead)
    assert clocks["shift_ns"] == [one - min(ahead) for one in ahead]


def test_two_hosts_of_two() -> None:
    ahead = [0, 0, 3 * SECOND, 3 * SECOND]
    clocks = merge(rank_traces(late(3, 4), ahead, hosts=["a", "a", "b", "b"])).facts["clocks"]
    assert clocks["by"] == ["collectives", "one host's clock"]
    assert clocks["shift_ns"][0] == clocks["shift_ns"][1]
    assert clocks["shift_ns"][2] == clocks["shift_ns"][3]
    assert clocks["error_ns"][1] == 0
    assert 0 < clocks["error_ns"][2] == clocks["error_ns"][3]


def test_ranks_that_never_meet_have_wall_clocks() -> None:
    traces = rank_traces([], [5, 70])
    process = {**traces[1].facts["process"], "unix_ns": traces[0].facts["process"]["unix_ns"] + 400}
    merged = merge([traces[0], replace(traces[1], facts={**traces[1].facts, "process": process})])
    assert merged.facts["clocks"] == {
        "shift_ns": [0, 400],
        "error_ns": [0, None],
        "by": ["wall clocks"],
        "early_ns": 0,
        "mispaired": 0,
    }
    assert "wall clocks alone" in " ".join(notes_on(merged))


def test_clocks_that_drift_are_told() -> None:
    # The second rank's clock is 1 µs further on at each meeting: what the exchange said holds for the first alone.
    meetings = [meeting([10_000 * n, 10_000 * n], 300) for n in range(1, 8)]
    drifting = [
        Meeting((one.came[0], one.came[1] + 1_000 * n), (one.left[0], one.left[1] + 1_000 * n))
        for n, one in enumerate(meetings)
    ]
    clocks = merge(rank_traces(drifting, [0, 0], errors=[0, 50])).facts["clocks"]
    assert clocks["by"] == ["collectives", "exchange"]
    assert 5_000 < clocks["early_ns"] < 6_500
    assert any(
        note.startswith("Clocks drifted: by up to")
        for note in notes_on(merge(rank_traces(drifting, [0, 0], errors=[0, 50])))
    )


def test_messages_tell_of_clocks_as_well() -> None:
    """What comes cannot have been sent later: one way each, so both ways are bounds."""
    ahead = [0, 2 * SECOND]
    kinds = {0: ("send", "recv"), 1: ("recv", "send")}
    traces = []
    for rank in (0, 1):
        rows = [
            call(0, None, 0, f"net.{kinds[rank][0]}", kinds[rank][0], 200, 200, host_start_ns=1_000 + 50 * rank),
            call(1, None, 0, f"net.{kinds[rank][1]}", kinds[rank][1], 200, 200, host_start_ns=5_000 - 50 * rank),
        ]
        trace = rank_traces([], ahead)[rank]
        calls = make_trace(rows).calls.assign(rank=rank, peers=["0>1", "1>0"], collective=[0, 0])
        traces.append(replace(trace, calls=calls_frame(calls)))
    clocks = merge(traces).facts["clocks"]
    wrong = clocks["shift_ns"][1] - clocks["shift_ns"][0]
    assert clocks["by"] == ["collectives"]
    assert abs(wrong) <= clocks["error_ns"][1] == 250


def test_what_a_merged_trace_is(tmp_path: Path) -> None:
    traces = rank_traces(late(1, 3), [0, SECOND, 2 * SECOND], hosts=["a", "a", "a"], command="x")
    traces[2] = replace(traces[2], facts={**traces[2].facts, "own_cost_ns": 700})
    merged = merge([traces[2], traces[0], traces[1]])
    assert merged.calls["rank"].tolist() == sorted(merged.calls["rank"])
    assert merged.calls["call"].is_unique
    assert len(merged.calls) == sum(len(trace.calls) for trace in traces)
    assert merged.calls["host_start_ns"].tolist()[: len(traces[0].calls)] == traces[0].calls["host_start_ns"].tolist()
    merged.save(tmp_path / "all.parquet")
    assert Trace.load(tmp_path / "all.parquet") == merged
    for rank, trace in enumerate(traces):
        one = merged.select(rank=rank)
        assert one.facts == trace.facts
        assert one.modules == trace.modules
        same = ["path", "class", "depth", "frame", "host_ns", "peers", "collective", "inputs"]
        assert one.calls[same].reset_index(drop=True).astype(object).equals(trace.calls[same].astype(object))
        assert (one.calls["parent"].dropna() - one.calls["call"].iloc[0]).tolist() == trace.calls[
            "parent"
        ].dropna().tolist()
    with pytest.raises(ValueError, match="no rank 3 in this trace: it has 0, 1, 2"):
        merged.select(rank=3)
    with pytest.raises(ValueError, match="it is of a single process"):
        sample_trace().select(rank=0)
    assert traces[1].select(rank=1) is traces[1]


def test_what_cannot_be_merged() -> None:
    traces = rank_traces(late(0, 2), [0, 0])
    three = rank_traces(late(0, 3), [0, 0, 0])
    for given_traces, said in (
        (traces[:1], "two ranks or more"),
        ([traces[0], traces[0]], "rank 0 occurs twice"),
        ([traces[0], three[1]], "ranks of different runs, one of 2 and one of 3 processes"),
        ([traces[0], sample_trace()], "of no rank"),
        ([merge(traces), traces[1]], "merged already"),
    ):
        with pytest.raises(ValueError, match=said):
            merge(given_traces)


def test_waits_among_the_ranks_present_are_a_lower_bound() -> None:
    merged = merge(rank_traces(late(2, 4), [0] * 4, hosts=["a"] * 4)[1:3])
    found = stragglers(merged)
    assert found.notes == (
        "6 collectives are not in the traces of all their ranks: waits among those present, a lower bound.",
    )
    assert found.straggler == 2
    assert found.ranks["caused_ns"].tolist() == [0, 6 * 3_990]
    assert "2 of 4 ranks: " in " ".join(notes_on(merged))
    even = merge(rank_traces(late(0, 4), [0] * 4, hosts=["a"] * 4)[1:3])
    assert stragglers(even).sentence.startswith("Ranks wait 0.")


def with_calls(trace: Trace, **columns: Any) -> Trace:
    """Return a trace with some columns of its calls replaced."""
    return replace(trace, calls=calls_frame(trace.calls.assign(**columns)))


def test_an_arrival_before_its_call_withholds_the_sentence() -> None:
    traces = rank_traces(late(1, 2), [0, 0], hosts=["a", "a"])
    moved = with_calls(traces[1], collective=traces[1].calls["collective"] + 1)
    merged = merge([traces[0], moved])
    found = stragglers(merged)
    assert found.straggler is None
    assert found.sentence == (
        "Waits cannot be told: 5 collectives are over on one rank before they begin on another of its host, so the"
        " ranks' collectives do not belong together."
    )
    assert collective_waits(merged).empty
    assert any("another of its host: 5 collectives" in note for note in notes_on(merged))
    # On hosts with clocks of their own the same is a contradiction of their exchange.
    slow = late(1, 2)
    seconds = [Meeting(tuple(t * 10**6 for t in one.came), tuple(t * 10**6 for t in one.left)) for one in slow]
    traces = rank_traces(seconds, [0, 0], errors=[0, 50])
    merged = merge([traces[0], with_calls(traces[1], collective=traces[1].calls["collective"] + 1)])
    assert merged.facts["clocks"]["mispaired"] == 0
    assert stragglers(merged).sentence.startswith("Waits cannot be told: by the clocks of their hosts, collectives end")
    assert any(note.startswith("Collectives contradict the clocks of their hosts by") for note in notes_on(merged))


def test_groups_over_the_same_ranks_are_told_apart() -> None:
    """Rank 1 begins its second collective in another group: numbers are equal, groups are not."""
    traces = []
    for trace, groups in zip(
        rank_traces(late(1, 2, 2), [0, 0], hosts=["a", "a"]),
        ((" group 1", " group 2"), (" group 2", " group 1")),
        strict=True,
    ):
        rows = trace.calls["peers"].notna()
        peers = trace.calls["peers"].astype(object)
        peers[rows] = [f"0-1{group}" for group in groups]
        traces.append(with_calls(trace, peers=peers, collective=trace.calls["collective"].where(~rows, 5)))
    found = stragglers(merge(traces))
    # Each group's collective is begun by a rank whose other one is over: no pair can be right.
    assert found.straggler is None
    assert found.sentence.startswith("Waits cannot be told: 2 collectives are over")


def test_waits_that_no_call_shows_are_told_by_arrival() -> None:
    """Collectives are begun and never waited for, as DDP does: two overlap, and a time counts once."""
    meetings = [Meeting((1_000, 9_000), (1_050, 9_050)), Meeting((2_000, 10_000), (2_050, 10_050))]
    traces = [
        with_calls(trace, outputs=[()] * len(trace.calls), outputs_id=0)
        for trace in rank_traces(meetings, [0, 0], hosts=["a", "a"])
    ]
    found = stragglers(merge(traces))
    assert found.straggler == 1
    assert found.ranks["wait_ns"].tolist() == [0, 0]
    assert found.ranks["lag_ns"].tolist() == [9_000, 0]
    assert found.ranks["caused_ns"].tolist() == [0, 9_000]
    assert "the others wait at most" in found.sentence
    assert found.notes[0].startswith("Waits in 2 collectives cannot be seen")
    even = [
        with_calls(trace, outputs=[()] * len(trace.calls), outputs_id=0)
        for trace in rank_traces([meeting([10_000] * 2, 300)], [0, 0], hosts=["a", "a"])
    ]
    assert stragglers(merge(even)).sentence == (
        "Ranks begin their collectives together: they wait at most 0.0 % of their time for each other."
    )


def test_no_wait_counts_before_the_last_rank_recorded() -> None:
    traces = rank_traces(late(1, 2), [0, 0], hosts=["a", "a"])
    process = {**traces[1].facts["process"], "hooked_ns": 13_900}  # it comes to its first collective at 14,000
    found = stragglers(merge([traces[0], replace(traces[1], facts={**traces[1].facts, "process": process})]))
    assert found.ranks["wait_ns"].tolist() == [100 + 5 * 4_000, 0]


def test_who_never_came_is_told() -> None:
    traces = rank_traces(late(1, 3, 3), [0, 0, 0], hosts=["a"] * 3)
    stopped = []
    for trace in traces[:2]:
        error = [None] * len(trace.calls)
        error[-1] = "unfinished"
        stopped.append(with_calls(trace, error=error))
    gone = with_calls(traces[2]).select(frame=0)
    assert missing_ranks(merge([*stopped, gone])) == (
        "Rank 2 never came to net.layers.0.all_reduce, collective 2 among 0-2, in which ranks 0, 1 ended with an error"
        " or was stopped.",
    )
    assert missing_ranks(merge(stopped))[0].endswith("; of rank 2 there is no trace.")


def test_ranks_of_different_runs_are_refused() -> None:
    traces = [
        replace(trace, facts={**trace.facts, "process": {**trace.facts["process"], "run_id": run}})
        for trace, run in zip(rank_traces(late(1, 2), [0, 0]), ("a", "b"), strict=True)
    ]
    with pytest.raises(ValueError, match="ranks of different runs"):
        merge(traces)


def test_ranks_without_calls_or_collectives_are_told() -> None:
    traces = rank_traces([], [0, 0], hosts=["a", "a"])
    one = rank_traces(late(1, 2), [0, 0], hosts=["a", "a"])[0]
    assert stragglers(merge(traces)).sentence.startswith("There are no collectives")
    found = stragglers(merge([one, traces[1]]))
    assert found.sentence == "No collective is in the traces of two ranks, so their waits for each other are not known."
    assert found.ranks["rank"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("by", "rows", "name"),
    [("module", 1, "net.layers.*"), ("layer", 2, "net.layers.1"), ("frame", 6, 5), ("call", 6, 5)],
)
def test_tables_of_waits(by: str, rows: int, name: object) -> None:
    meetings = [replace(one, place=f"net.layers.{n % 2}") for n, one in enumerate(late(1, 2))]
    trace = merge(rank_traces(meetings, [0, 0], hosts=["a", "a"]))
    table = trace.ranks(by)
    assert len(table) == rows
    column = {"module": "module", "layer": "module", "frame": "frame", "call": "collective"}[by]
    assert name in table[column].tolist()
    assert (table["rank 0.wait_ns"] == 4_000).all()
    assert (table["last"] == "rank 1, 100 %").all()
    assert table["gbytes_per_s"].tolist() == pytest.approx([32 / 300] * rows)
    assert table["wait_ns"].sum() == trace.ranks()["caused_ns"].sum() == 24_000
    assert table.attrs["sentence"] == stragglers(trace).sentence
    outside = merge([with_calls(one, frame=None) for one in rank_traces(meetings, [0, 0], hosts=["a", "a"])])
    assert outside.ranks("frame")["frame"].tolist() == [pd.NA]
    with pytest.raises(ValueError, match="by phase: not for ranks"):
        trace.ranks("phase")


def test_ranks_that_are_out_of_step_are_told() -> None:
    traces = rank_traces(late(0, 2), [0, 0], hosts=["a", "a"])
    calls = traces[1].calls.assign(
        **{"class": traces[1].calls["class"].astype(object).replace("all_reduce", "all_gather")}
    )
    found = stragglers(merge([traces[0], replace(traces[1], calls=calls_frame(calls))]))
    assert "6 collectives are of one kind on some ranks and of another on others" in found.notes[0]


def test_who_waits_for_whom() -> None:
    merged = merge(rank_traces(late(2, 3), [0, 0, 0], hosts=["a"] * 3))
    found = waits_by_rank(collective_waits(merged))
    assert found["last"].tolist() == [2] * 18
    by_rank = found.groupby("rank")[["wait_ns", "transfer_ns"]].sum()
    assert by_rank["wait_ns"].tolist() == [6 * 4_000, 6 * 3_990, 0]
    assert by_rank["transfer_ns"].tolist() == [6 * 300] * 3
    assert (found["bytes"] == 32).all()
    told = stragglers(merged)
    assert told.straggler == 2
    ranks = told.ranks.set_index("rank")
    assert ranks["caused_ns"].tolist() == [0, 0, 6 * 7_990]
    assert ranks["last_share"].tolist() == [0, 0, 1]
    assert ranks["time_ns"].tolist() == [54_500, 54_490, 50_500]
    assert ranks["wait_share"][0] == pytest.approx(24_000 / 54_500)
    assert told.sentence == (
        "Rank 2 is the straggler: it comes last to 100 % of its collectives, and the others wait 44 % of their time for"
        " it, all of it in all_reduce of net.layers.*."
    )
    row = told.collectives.iloc[0]
    assert (row["class"], row["module"], row["peers"], row["calls"], row["last"]) == (
        "all_reduce",
        "net.layers.*",
        "0-2",
        6,
        "rank 2, 100 %",
    )
    assert (row["rank 0.wait_ns"], row["rank 2.wait_ns"], row["transfer_ns"]) == (4_000, 0, 300)


def test_in_turns_there_is_no_straggler() -> None:
    meetings = [late(n % 2, 2)[n] for n in range(6)]
    told = stragglers(merge(rank_traces(meetings, [0, 0], hosts=["a", "a"])))
    assert told.straggler is None
    assert re.fullmatch(
        r"No one straggler: ranks wait \d+ % of their time for each other, and of that 50 % for rank [01]\.",
        told.sentence,
    )
    even = [meeting([10_000 * n] * 2, 300) for n in range(1, 5)]
    told = stragglers(merge(rank_traces(even, [0, 0], hosts=["a", "a"])))
    assert told.sentence == "No straggler: ranks wait 0.0 % of their time for each other."


def test_what_runs_beside_is_no_wait() -> None:
    """Begun at 1,000, the others come at 5,000; meanwhile this rank computes, and waits from 4,000 to 6,000."""
    traces = []
    for rank in (0, 1):
        rows = (
            [(1_000, 50, "all_reduce"), (4_000, 2_000, "wait")]
            if rank == 0
            else [(5_000, 50, "all_reduce"), (5_100, 900, "wait")]
        )
        calls = [
            call(n, None, 0, f"net.{kind}", kind, ns, ns, host_start_ns=at) for n, (at, ns, kind) in enumerate(rows)
        ]
        frame = make_trace(calls).calls.assign(rank=rank, peers="0-1", collective=0)
        traces.append(replace(rank_traces([], [0, 0], hosts=["a", "a"])[rank], calls=calls_frame(frame)))
    found = waits_by_rank(collective_waits(merge(traces))).set_index("rank")
    assert found["wait_ns"].tolist() == [50 + 1_000, 0]
    assert found["transfer_ns"].tolist() == [1_000, 950]
    assert found["end_ns"].tolist() == [6_000, 6_000]


def test_a_frame_is_that_of_all_ranks() -> None:
    traces = rank_traces(late(1, 2), [0, 0], hosts=["a", "a"])
    found = frame_latencies(merge(traces))
    assert found["frame"].tolist() == list(range(6))
    # From when the first rank begins to when it begins the next; how long the last one takes is not known.
    assert found["latency_ns"].tolist() == [10_000] * 5 + [pd.NA]


def test_runs_end_on_the_line_of_all_ranks() -> None:
    ahead = [0, 7_000]
    ended = [
        replace(trace, facts={**trace.facts, "run_ends": [None, {"frame": 5, "ns": ns}]})
        for trace, ns in zip(rank_traces(late(1, 2), ahead, hosts=["a", "a"]), (80_000, 73_000), strict=True)
    ]
    merged = merge(ended)
    shifts = merged.facts["clocks"]["shift_ns"]
    for rank, (trace, shift) in enumerate(zip(ended, shifts, strict=True)):
        found = merged.select(rank=rank).facts["run_ends"]
        assert found == [None, {"frame": 5, "ns": trace.facts["run_ends"][1]["ns"] + shift}]


def test_flow_stays_with_its_rank() -> None:
    def with_flow(trace: Trace) -> Trace:
        columns = {
            "call": [-1, 1, 3],
            "after": [-1, 1, 3],
            "phase": ["decode"] * 3,
            "frame": [0] * 3,
            "step": [None] * 3,
            "name": ["x", "linear", "add"],
            "kind": ["input", "op", "op"],
            "heavy": [False, True, False],
            "returned": [False, True, True],
            "inputs": [()] * 3,
            "outputs": [()] * 3,
        }
        return replace(trace, flow=Flow(ops_frame(columns), edges_frame([0, 1], [1, 2], [False, False])))

    traces = [with_flow(trace) for trace in rank_traces(late(1, 3), [0] * 3, hosts=["a"] * 3)]
    merged = merge(traces)
    assert merged.flow is not None
    assert len(merged.flow.ops) == 9
    for rank in range(3):
        part = merged.select(rank=rank)
        assert part.flow is not None
        first = int(part.calls["call"].iloc[0])
        assert part.flow.ops["call"].tolist() == [-1, first + 1, first + 3]
        assert part.flow.ops["after"].tolist() == [first - 1, first + 1, first + 3]
        assert part.flow.edges["source"].tolist() == [0, 1]
        assert len(build_graph(part).edges) == len(build_graph(traces[rank]).edges) > 0
    assert merge([traces[0], replace(traces[1], flow=None), traces[2]]).flow is None


def test_what_is_of_one_rank_asks_for_it() -> None:
    merged = merge(rank_traces(late(1, 2), [0, 0], hosts=["a", "a"]))
    with pytest.raises(ValueError, match="the trace has ranks 0, 1; choose one with --rank"):
        build_graph(merged)
    assert build_graph(merged.select(rank=1)).boxes


@pytest.fixture
def merged() -> Trace:
    return merge(rank_traces(late(1, 2), [0, 0], hosts=["a", "a"]))


def test_ranks_side_by_side(merged: Trace) -> None:
    table = json.loads(render(merged, "json", RenderOptions(by="class", across="rank")))
    assert table[0]["class"] == "all_reduce"
    assert [table[0]["rank 0.calls"], table[0]["rank 1.calls"]] == [6, 6]
    assert b"rank 1 mean" in render(merged, "markdown", RenderOptions(by="module", across="rank"))
    assert json.loads(render(merged, "speedscope"))["profiles"][1]["name"] == "decode · rank 1"
    assert b"decode rank 1;net Net;" in render(merged, "flamegraph")


def test_perfetto_has_a_process_a_rank(merged: Trace) -> None:
    events = json.loads(render(merged, "perfetto"))["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {1: "rank 0 host", 3: "rank 1 host"}
    calls = [event for event in events if event.get("cat") == "call"]
    assert len(calls) == len(merged.calls)
    assert {event["args"]["peers"] for event in calls if event["name"] == "all_reduce"} == {"0-1"}
    waiting = [event for event in events if event.get("cat") == "wait"]
    assert [(event["pid"], event["name"]) for event in waiting] == [(1, "wait for rank 1"), (1, "transfer")] * 6
    arrows = [(event["ph"], event["pid"]) for event in events if event.get("cat") == "collective"]
    assert arrows == [("s", 3), ("f", 1)] * 6


@needs_perfetto
def test_perfetto_draws_it(merged: Trace, tmp_path: Path) -> None:
    problems, tracks, args, flows = rows_of(merged, tmp_path, PROBLEMS, TRACKS, ARGS, FLOWS)
    assert problems == []
    assert {row[0] for row in tracks} == {"rank 0 host", "rank 1 host"}
    slices = [row for row in tracks if row[3] in ("call", "wait")]
    assert sorted((row[5], row[4], row[2]) for row in slices if row[0] == "rank 0 host")[:4] == [
        (9_900, 0, "net Net"),
        (10_000, 1, "all_reduce"),
        (10_000, 2, "wait for rank 1"),
        (14_000, 2, "transfer"),
    ]
    assert len(flows) == 6
    assert {(row[1], row[3]) for row in flows} == {("call", "wait")}
    found = {(row[0], row[1]): row[2] for row in args}
    last = next(row for row in slices if row[0] == "rank 1 host" and row[2] == "all_reduce")
    assert found[last[7], "args.collective"] in (0, "0")


def test_the_picture(merged: Trace) -> None:
    root = ElementTree.fromstring(render(merged, "timeline"))
    texts = ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {
        "rank 0",
        "rank 1",
        f"waits {24_000 / 54_500:.1%}".replace("%", " %"),
        "Net, 2 ranks",
        stragglers(merged).sentence,
    } <= set(texts)
    said = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("waiting for rank 1" in text for text in said) == 12  # both parts of six
    colours = [one.get("fill") for one in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert colours.count("#f5a04c") == 6 + 1
    assert colours.count("#2f7fc1") == 12 + 1
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 6 + 1


def test_the_picture_of_one_frame_and_of_one_rank(merged: Trace) -> None:
    one = render(merged.select(frame=2), "timeline")
    assert one.count(b"waiting for rank 1") == 2
    assert b">rank 1<" not in render(merged.select(rank=0), "timeline")
    assert b"net Net" in render(sample_trace(), "timeline")


@settings(max_examples=examples(20), deadline=None)
@given(st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=30)), min_size=1, max_size=4))
def test_the_picture_whatever_names_are(names: list[str]) -> None:
    rows = [
        call(n, None, 0, name or "x", name or "X", 5_000, 5_000, host_start_ns=6_000 * n, phase=name or None)
        for n, name in enumerate(names)
    ]
    drawn = render(make_trace(rows, model=names[0]), "timeline")
    assert len(ElementTree.fromstring(drawn)) > 2
    assert b"<script" not in drawn


def test_very_many_narrow_calls_are_few_boxes() -> None:
    rows = [call(n, None, 0, "net", "Net", 10, 10, host_start_ns=12 * n) for n in range(20_000)]
    assert render(make_trace(rows), "timeline").count(b"<rect") < 20


def test_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for rank, trace in enumerate(rank_traces(late(1, 2), [0, 0], hosts=["a", "a"])):
        trace.save(tmp_path / f"run.rank{rank}.parquet")
    names = [tmp_path / f"run.rank{rank}.parquet" for rank in range(2)]
    monkeypatch.setenv("COLUMNS", "160")
    assert talkerviz(monkeypatch, "merge", *names, "-o", tmp_path / "all.parquet") == 0
    assert "Rank 1 is the straggler" in capsys.readouterr().out
    assert talkerviz(monkeypatch, "show", tmp_path / "all.parquet", "--ranks") == 0
    shown = capsys.readouterr().out
    for part in ("Ranks", "comes last", "net.layers.*", "rank 1, 100 %", "Rank 1 is the straggler", "2 ranks: times"):
        assert part in shown
    assert talkerviz(monkeypatch, "show", tmp_path / "all.parquet", "--ranks", "-f", "csv") == 0
    assert capsys.readouterr().out.startswith('"rank","host","time_ns",')
    assert talkerviz(monkeypatch, "show", tmp_path / "all.parquet", "--ranks", "--by", "call", "-f", "json") == 0
    assert [row["collective"] for row in json.loads(capsys.readouterr().out)] == list(range(6))
    assert talkerviz(monkeypatch, "show", tmp_path / "all.parquet", "-f", "json") == 2
    assert "only with --ranks" in capsys.readouterr().err
    empty = tmp_path / "run.rank2.parquet.partial"
    empty.touch()
    assert talkerviz(monkeypatch, "merge", *names, empty, "-o", tmp_path / "two.parquet") == 0
    assert "rank2.parquet.partial: left out" in capsys.readouterr().err.replace("\n", "")
    assert talkerviz(monkeypatch, "show", tmp_path / "all.parquet", "--rank", 1, "--by", "class") == 0
    assert "all_reduce" in capsys.readouterr().out
    for command in (
        ["tree"],
        ["report", "-o", tmp_path / "report"],
        ["render", "-f", "mermaid"],
        ["show", "--ranks", "--rank", 1],
    ):
        assert talkerviz(monkeypatch, command[0], tmp_path / "all.parquet", *command[1:]) == 2
        assert "rank" in capsys.readouterr().err
    assert talkerviz(monkeypatch, "tree", tmp_path / "all.parquet", "--rank", 0) == 0
    assert talkerviz(monkeypatch, "show", names[0], "--ranks") == 2
    assert talkerviz(monkeypatch, "merge", *names, "-o", names[0]) == 2
    assert talkerviz(monkeypatch, "merge", names[0], tmp_path / "none.parquet", "-o", tmp_path / "x.parquet") == 2
    assert "none.parquet: no such file" in capsys.readouterr().err
    assert not (tmp_path / "x.parquet").exists()


def test_ten_ranks_have_fewer_columns() -> None:
    told = stragglers(merge(rank_traces(late(9, 10), [0] * 10, hosts=["a"] * 10)))
    assert told.straggler == 9
    assert {"median.wait_ns", "most.wait_ns"} <= set(told.collectives.columns)
    assert pd.notna(told.collectives["most.wait_ns"]).all()
