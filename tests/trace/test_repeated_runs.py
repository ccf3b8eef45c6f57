"""Several runs in one trace."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from command_line import Capture, talkerviz
from sample_trace import call, make_trace
from taps import every_way
from torch import nn

from talkerviz.analysis.frame_latency import frame_latencies
from talkerviz.analysis.run_stats import run_stats
from talkerviz.api import Trace
from talkerviz.flowchart.builder import build_graph
from talkerviz.flowchart.flat_calls import call_graph
from talkerviz.flowchart.model import Graph, View
from talkerviz.recorder import recording as recorder
from talkerviz.recorder.event_writer import EventWriter
from talkerviz.recorder.phases.talker import TalkerPhases
from talkerviz.recorder.record import record
from talkerviz.recorder.recording import recording
from talkerviz.render.notes import notes_on
from talkerviz.trace.join import join
from talkerviz.trace.runs import as_one_run, end_of_run, whole_runs


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def run_twice(net: nn.Module) -> None:
    for _ in range(2):
        net(torch.ones(1, 4))


def runs_of(*own: tuple[int, int]) -> Trace:
    """Return a trace with a run a pair: self times of a frame's root and of its child call; then the root once more."""
    rows = []
    for run, (root, inner) in enumerate(own):
        at = {"run": run, "host_start_ns": 1_000_000 * run}
        rows += [
            call(3 * run, None, 0, "net", "Net", root + inner, root, **at),
            call(
                3 * run + 1,
                3 * run,
                1,
                "net.a",
                "Linear",
                inner,
                inner,
                **at | {"host_start_ns": at["host_start_ns"] + root},
            ),
            call(
                3 * run + 2,
                None,
                0,
                "net",
                "Net",
                10,
                10,
                **at | {"host_start_ns": at["host_start_ns"] + 5_000},
                frame=1,
            ),
        ]
    return make_trace(rows)


@every_way
def test_phases_and_frames_begin_anew(any_tap: str, tmp_path: Path) -> None:
    net, file = model(), tmp_path / "r.parquet"
    with recording(net, file=file) as rec:
        for _ in range(3):
            with rec.run():
                run_twice(net)
    calls = rec.trace.calls
    assert calls["run"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert calls["run"].dtype == "int32"
    assert calls["frame"].tolist() == [0, 0, 0, 1, 1, 1] * 3
    assert rec.trace == Trace.load(file)
    second = rec.trace.select(run=1)
    assert second.calls["call"].tolist() == list(range(6, 12))
    assert rec.trace.select(run=1, frame=1).calls["call"].tolist() == [9, 10, 11]
    with pytest.raises(ValueError, match="no run 3 in this trace: it has 0, 1, 2"):
        rec.trace.select(run=3)


def test_each_recording_and_each_run_divides_anew() -> None:
    net, begun = model(), list[str]()

    class Rule(TalkerPhases):
        def __init__(self, root: str) -> None:
            begun.append(root)
            super().__init__(root)

    for _ in range(2):
        with recording(net, "net", Rule) as rec:
            for _ in range(2):
                with rec.run():
                    run_twice(net)
        frames = rec.trace.calls.groupby("run")["frame"].unique()
        assert [list(each) for each in frames] == [[0, 1], [0, 1]]
    assert begun == ["net"] * 6  # whatever runs are in the recording, calls before them have a rule as well


def test_one_run_is_run_0() -> None:
    net = model()
    assert record(net, lambda: run_twice(net)).calls["run"].tolist() == [0] * 6


def test_what_was_cut_short_is_kept_and_left_out() -> None:
    net = model()
    with recording(net) as rec:
        with rec.run():
            run_twice(net)
        with pytest.raises(RuntimeError), rec.run():
            net(torch.ones(1, 5))
        with rec.run():
            run_twice(net)
    trace = rec.trace
    assert trace.facts["cut_short"] == [1]
    assert trace.calls["run"].unique().tolist() == [0, 1, 2]
    assert whole_runs(trace) == [0, 2]
    assert run_stats(trace, "phase").attrs["runs"] == 2
    assert as_one_run(trace).facts["mean_of_runs"] == 2


def test_when_runs_end() -> None:
    net = model()
    with recording(net) as rec:
        with rec.run():
            run_twice(net)
            time.sleep(0.02)
        with pytest.raises(RuntimeError), rec.run():
            net(torch.ones(1, 5))
        with rec.run():
            pass
    first, cut, empty = rec.trace.facts["run_ends"]
    calls = rec.trace.calls[rec.trace.calls["run"] == 0]
    assert first["frame"] == 1
    assert first["ns"] - int((calls["host_start_ns"] + calls["host_ns"]).max()) >= 20_000_000
    assert cut is None
    assert empty["frame"] is None
    assert empty["ns"] > first["ns"]
    latency = frame_latencies(rec.trace)["latency_ns"]
    assert latency[1] >= 20_000_000
    assert record(net, lambda: run_twice(net)).facts["run_ends"][0]["frame"] == 1
    assert "run_ends" not in record(net, lambda: run_twice(net), clock="none").facts
    with recording(net) as rec:
        run_twice(net)
    assert "run_ends" not in rec.trace.facts  # what belongs to a run is not known


def test_the_recorders_own_pauses_are_no_time_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()

    def slow(self: EventWriter, *args: Any) -> None:
        time.sleep(0.05)
        write(self, *args)

    write = EventWriter.write
    monkeypatch.setattr(EventWriter, "write", slow)
    monkeypatch.setattr(recorder, "_BATCH", 2)  # writes at each call
    with recording(net) as rec, rec.run():
        run_twice(net)
    (end,) = rec.trace.facts["run_ends"]
    calls = rec.trace.calls
    after = end["ns"] - int((calls["host_start_ns"] + calls["host_ns"]).max())
    assert 0 <= after < 50_000_000


def test_the_mean_of_runs_ends_as_they_do_in_the_mean() -> None:
    trace = runs_of((1, 2), (3, 4))
    ended = Trace(
        trace.calls,
        trace.modules,
        {**trace.facts, "run_ends": [{"frame": 1, "ns": 100}, {"frame": 1, "ns": 1_000_200}]},
    )
    assert as_one_run(ended).facts["run_ends"] == [{"frame": 1, "ns": 150}]
    unknown = Trace(trace.calls, trace.modules, {**trace.facts, "run_ends": [{"frame": 1, "ns": 100}, None]})
    assert end_of_run(as_one_run(unknown), 0) is None


def test_a_joined_run_keeps_when_it_ended() -> None:
    net = model()
    with recording(net) as rec:
        run_twice(net)
    flow = record(net, lambda: run_twice(net), measure="flow")
    assert "run_ends" in flow.facts
    assert "run_ends" not in join(rec.trace, flow).facts


def test_the_last_run_of_a_killed_process_is_left_out() -> None:
    trace = runs_of((1, 2), (3, 4), (5, 6))
    assert whole_runs(trace) == [0, 1, 2]
    killed = Trace(trace.calls, trace.modules, {**trace.facts, "unfinished": True})
    assert whole_runs(killed) == [0, 1]
    alone = killed.select(run=0)
    assert whole_runs(alone) == [0]  # better than nothing


def test_statistics_over_runs() -> None:
    table = run_stats(runs_of((100, 40), (130, 20), (160, 90)))
    assert table["module"].tolist() == ["net", "net.a"]
    assert table["class"].tolist() == ["Net", "Linear"]
    assert table["calls"].tolist() == [2, 1]
    assert table["self.mean_ns"].tolist() == [140, 50]
    assert table["self.std_ns"].tolist() == [30, 36]
    assert table["self.p50_ns"].tolist() == [140, 40]
    assert table["total.mean_ns"].tolist() == [190, 50]
    assert table["total.p50_ns"].tolist() == [160, 40]
    assert table["device.mean_ns"].isna().all()
    assert run_stats(runs_of((100, 40), (130, 20)), "frame")["frame"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="cannot group by 'call' over runs"):
        run_stats(runs_of((1, 1), (1, 1)), "call")
    with pytest.raises(ValueError, match="no two whole runs"):
        run_stats(runs_of((1, 1)))


def test_a_row_that_a_run_has_not_counts_as_nothing() -> None:
    rows = [
        call(0, None, 0, "net", "Net", 10, 10),
        call(1, None, 0, "net", "Net", 10, 10, run=1),
        call(2, None, 0, "net.extra", "Net", 8, 8, run=1),
    ]
    table = run_stats(make_trace(rows)).set_index("module")
    assert table.loc["net.extra", "self.mean_ns"] == 4


def test_runs_as_one() -> None:
    one = as_one_run(runs_of((100, 40), (130, 20), (160, 90)))
    assert one.calls["call"].tolist() == [0, 1, 2]
    assert one.calls["host_self_ns"].tolist() == [130, 50, 10]
    assert one.calls["host_ns"].tolist() == [180, 50, 10]
    # The call stands inside its caller still.
    assert one.calls["host_start_ns"].tolist() == [0, 130, 5_000]
    assert one.facts["mean_of_runs"] == 3
    single = runs_of((100, 40))
    assert as_one_run(single) is single


def test_a_run_with_other_calls_is_in_no_mean() -> None:
    trace = runs_of((100, 40), (130, 20), (160, 90))
    fewer = Trace(trace.calls[trace.calls["call"] != 5], trace.modules, trace.facts)
    one = as_one_run(fewer)
    assert one.facts["mean_of_runs"] == 2
    assert one.calls["host_self_ns"].tolist() == [130, 65, 10]


def drawn(graph: Graph) -> Any:
    boxes = {box.id: (box.kind, box.path, box.name, box.repeats, box.shapes, box.calls) for box in graph.boxes}
    return boxes, [(edge.source, edge.target, edge.carried, edge.state) for edge in graph.edges]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Trace]:
    found = {}
    for repeat in (1, 3):
        path = tmp_path_factory.mktemp("repeat") / "r.parquet"
        with pytest.MonkeyPatch.context() as patch:
            args = ("--preset", "tiny", "--frames", 2, "--warmup", 2, "--repeat", repeat, "--cost", "-o", path)
            assert talkerviz(patch, "trace", *args) == 0
        found[repeat] = Trace.load(path)
    return found


def test_a_repeated_run_from_the_command_line(traces: dict[int, Trace]) -> None:
    one, three = traces[1], traces[3]
    assert len(three.calls) == 3 * len(one.calls)
    assert three.calls["run"].unique().tolist() == [0, 1, 2]
    assert len(three.facts["warmup_ns"]) == 2
    assert three.facts["repeat"] == 3
    assert "repeat" not in one.facts
    for run in range(3):
        again = three.select(run=run).calls
        for name in ("path", "phase", "frame", "step", "inputs", "outputs", "flops", "bytes_read"):
            assert again[name].tolist() == one.calls[name].tolist(), name


def test_the_flow_is_the_first_runs(traces: dict[int, Trace]) -> None:
    one, three = traces[1], traces[3]
    assert one.flow is not None
    first = three.select(run=0).flow
    assert first is not None
    assert first.ops["name"].tolist() == one.flow.ops["name"].tolist()
    assert first.edges.equals(one.flow.edges)
    assert three.select(run=1).flow is None


@pytest.mark.parametrize("edges", ["flow", "calls"])
def test_a_repeated_run_gives_the_same_picture(edges: str, traces: dict[int, Trace]) -> None:
    view = View(max_nodes=60, edges=edges, depth=2)
    one, three = (build_graph(traces[repeat], view) for repeat in (1, 3))
    assert drawn(three) == drawn(one)
    assert three.notes == (*one.notes, "Times are means of 3 runs.")
    assert len(call_graph(traces[3]).nodes) == len(traces[1].calls)


def test_costs_of_runs_that_differ() -> None:
    trace = runs_of((100, 40), (130, 20), (160, 90))
    other = trace.select(run=0)
    costs = Trace(other.calls.assign(flops=pd.array([7, 8, 9], "Int64")), other.modules, {})
    assert join(trace, costs).calls["flops"].tolist() == [7, 8, 9] * 3
    fewer = Trace(trace.calls[trace.calls["call"] != 5], trace.modules, trace.facts)
    assert join(fewer, costs).calls["flops"].fillna(-1).tolist() == [7, 8, 9, -1, -1, 7, 8, 9]


def test_show_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    path = tmp_path / "r.parquet"
    runs_of((100, 40), (130, 20)).save(path)
    assert talkerviz(monkeypatch, "show", path, "--runs") == 0
    shown = capsys.readouterr().out
    assert "Time by module over 2 runs" in shown
    assert re.search(r"net .* 2 .*125 ns .* 21 ns .*125 ns", shown)
    assert talkerviz(monkeypatch, "show", path, "--runs", "--sort", "total") == 2
    assert "--sort: not with --runs" in capsys.readouterr().err
    runs_of((100, 40)).save(path)
    assert talkerviz(monkeypatch, "show", path, "--runs") == 2
    assert "record more with `talkerviz trace --repeat`" in capsys.readouterr().err


STOPS = """
import torch
from torch import nn

def make():
    model, runs = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), iter(range(9))
    def run():
        number = next(runs)
        model[0](torch.ones(1, 4))
        if number == {at}:
            raise {error}
        model(torch.ones(1, 4))
    return model, run
"""


@pytest.mark.parametrize(("error", "code"), [("KeyboardInterrupt", 130), ('RuntimeError("no luck")', 2)])
def test_what_there_was_is_kept(
    error: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path(f"stops_late_{code}.py").write_text(STOPS.format(at=3, error=error))
    args = ("--warmup", 1, "--repeat", 5, "--no-flow", f"stops_late_{code}:make")
    assert talkerviz(monkeypatch, "trace", *args) == code
    assert "9 calls are kept in run.parquet" in capsys.readouterr().err
    trace = Trace.load("run.parquet")
    assert trace.calls["run"].tolist() == [0] * 4 + [1] * 4 + [2]
    assert whole_runs(trace) == [0, 1]
    assert talkerviz(monkeypatch, "show", "run.parquet", "--runs") == 0
    assert "over 2 runs" in capsys.readouterr().out


def test_a_warm_up_that_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("stops_early.py").write_text(STOPS.format(at=0, error='RuntimeError("no luck")'))
    assert talkerviz(monkeypatch, "trace", "--warmup", 1, "stops_early:make") == 2
    assert (
        "the warm-up stopped with RuntimeError: no luck (stops_early.py:11); nothing is recorded"
        in capsys.readouterr().err
    )
    Path("stopped_early.py").write_text(STOPS.format(at=0, error="KeyboardInterrupt"))
    assert talkerviz(monkeypatch, "trace", "--warmup", 1, "stopped_early:make") == 130
    assert capsys.readouterr().err.endswith("talkerviz: stopped; nothing is recorded: it was warming up\n")
    assert not Path("run.parquet").exists()


@pytest.mark.parametrize("output", ["run.parquet", "-"])
def test_ctrl_c_once_the_calls_are_recorded(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    module = "stopped_in_flow" if output == "-" else "stopped_in_the_flow"
    Path(f"{module}.py").write_text(STOPS.format(at=1, error="KeyboardInterrupt"))
    assert talkerviz(monkeypatch, "trace", "-o", output, f"{module}:make") == 130
    shown = capfdbinary.readouterr()
    if output == "-":
        Path("run.parquet").write_bytes(shown.out)
    assert b"stopped; 4 calls are kept in" in shown.err
    trace = Trace.load("run.parquet")
    assert (len(trace.calls), trace.flow) == (4, None)


@pytest.mark.parametrize("option", [("--repeat", 0), ("--warmup", -1)])
def test_bad_numbers(option: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert talkerviz(monkeypatch, "trace", "--preset", "tiny", *option) == 2
    assert f"Invalid value for '{option[0]}'" in capsys.readouterr().err


def test_notes() -> None:
    assert notes_on(make_trace([], warmup_ns=[5_100_000_000, 1_200_000], repeat=5, cut_short=[4])) == [
        "Warmed up before: 5.10 s, 1.20 ms, in none of these numbers.",
        "5 runs: times and calls are of all together; `show --runs` tells how they differ.",
        "Cut short: run 4; statistics over runs leave it out.",
    ]
