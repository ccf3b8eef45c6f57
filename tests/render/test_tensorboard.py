"""The profile for TensorBoard and HolisticTraceAnalysis: a golden file, and what their own readers make of it."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from golden_files import check_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from sample_trace import call, make_trace, sample_trace, tensor
from timelines import Tree, timeline_trace, trace_of, trees

from talkerviz.analysis.summary import summarise
from talkerviz.api import Trace
from talkerviz.cli import main
from talkerviz.render.registry import render

Event = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore:The (inplace|copy) keyword")  # how the readers use pandas
needs_plugin = pytest.mark.skipif(
    not importlib.util.find_spec("torch_tb_profiler"), reason="needs `pip install --no-deps torch-tb-profiler`"
)
needs_hta = pytest.mark.skipif(
    not importlib.util.find_spec("hta") or not importlib.util.find_spec("psutil"),
    reason="needs `pip install --no-deps HolisticTraceAnalysis psutil`",
)
GPU = {"gpu": "a GPU", "device": "cuda:0", "date": "2026-01-02T03:04:05+00:00"}


def events_of(trace: Trace, category: str) -> list[Event]:
    events = json.loads(render(trace, "tensorboard"))["traceEvents"]
    return [event for event in events if event.get("cat") == category]


def on_device() -> Trace:
    trace = timeline_trace()
    return replace(trace, facts={**trace.facts, **GPU})


def two_runs() -> Trace:
    """Two frames in each of two runs, with a pause between the runs."""
    rows = [
        call(n, None, 0, "net", "Net", 80, 80, run=n // 2, frame=n % 2, host_start_ns=100 * n + 1_000 * (n // 2))
        for n in range(4)
    ]
    return make_trace(rows)


def test_golden() -> None:
    check_golden("timeline.pt.trace.json", render(on_device(), "tensorboard").decode())


def test_frames_are_steps_until_the_next_one() -> None:
    steps = [
        (event["name"], event["ts"], event["dur"], event["args"]) for event in events_of(two_runs(), "user_annotation")
    ]
    assert steps == [
        ("ProfilerStep#0", 0.0, 0.1, {"frame": 0, "run": 0}), ("ProfilerStep#1", 0.1, 0.08, {"frame": 1, "run": 0}),
        ("ProfilerStep#2", 1.2, 0.1, {"frame": 0, "run": 1}), ("ProfilerStep#3", 1.3, 0.08, {"frame": 1, "run": 1}),
    ]  # fmt: skip
    later = sample_trace().select(frame=1)
    assert [event["name"] for event in events_of(later, "user_annotation")] == ["ProfilerStep#1"]


def test_what_a_process_is_and_what_it_sends() -> None:
    rows = [
        call(0, None, 0, "net", "Net", 9, 4),
        call(1, 0, 1, "net.all_reduce", "all_reduce", 5, 5, inputs=(tensor("0", 2, 8),)),
    ]
    trace = make_trace(rows, process={"rank": 3, "world_size": 4, "backend": "gloo", "host": "here"})
    trace = replace(trace, modules=trace.modules[:1])
    assert json.loads(render(trace, "tensorboard"))["distributedInfo"] == {
        "backend": "gloo",
        "rank": 3,
        "world_size": 4,
    }
    assert [event["name"] for event in events_of(trace, "python_function")] == ["nn.Module: net Net"]
    (sent,) = events_of(trace, "cpu_op")
    assert sent["name"] == "gloo:all_reduce"
    assert sent["args"] == {"External id": 2, "Input Dims": [[2, 8]], "Input type": ["float32"]}
    several = replace(trace, calls=trace.calls.assign(rank=pd.array([0, 1], dtype="int32")))
    with pytest.raises(ValueError, match=r"has ranks 0, 1.* with --rank"):
        render(several, "tensorboard")


@settings(max_examples=examples(25), deadline=None)
@given(
    st.lists(trees, min_size=1, max_size=5), st.lists(st.text(max_size=9), min_size=1, max_size=3), st.integers(1, 2)
)
def test_calls_lie_in_each_other(some: list[Tree], names: list[str], threads: int) -> None:
    trace = trace_of(some, names, threads)
    modules, operators = (events_of(trace, category) for category in ("python_function", "cpu_op"))
    assert [event["args"]["call"] for event in modules] == trace.calls["call"].tolist()
    inner = set(trace.calls["call"]) - set(trace.calls["parent"].dropna())
    assert [event["args"]["External id"] - 1 for event in operators] == sorted(inner)
    ends: dict[int, list[int]] = {}
    for event, depth in zip(modules, trace.calls["depth"], strict=True):
        around = ends.setdefault(event["tid"], [])
        start, took = (round(event[name] * 1000) for name in ("ts", "dur"))
        del around[depth:]
        assert not around or start + took <= around[-1]
        around.append(start + took)


# ---- TensorBoard.


@needs_plugin
def test_what_tensorboard_shows() -> None:
    from torch_tb_profiler.profiler.data import RunProfileData
    from torch_tb_profiler.profiler.module_op import aggegate_module_view
    from torch_tb_profiler.profiler.run_generator import RunGenerator

    trace = on_device()
    # Chrome's times are rounded to nanoseconds; what it adds up is compared in them.
    ns = lambda microseconds: round(microseconds * 1000)  # noqa: E731
    data = RunProfileData.from_json("worker", None, json.loads(render(trace, "tensorboard")))
    shown = RunGenerator("worker", None, data).generate_run_profile()
    assert [view.display_name for view in shown.views] == ["Overview", "Operator", "Kernel", "Trace", "Module"]
    assert data.steps_names == ["0"]  # the plugin leaves the last one out where there is a device
    assert shown.gpu_summary is not None

    (root,) = aggegate_module_view(data.tid2tree, data.events)
    found: dict[int, tuple[int, int]] = {}

    def look(module: Any) -> None:
        assert module.id not in found
        found[module.id] = (module.occurences, ns(module.host_duration))
        for child in module.children:
            look(child)

    look(root)
    ours = summarise(trace, "module").set_index("module")
    numbers = {module.path: number for number, module in enumerate(trace.modules)}
    assert found == {numbers[path]: (row["calls"], row["total_ns"]) for path, row in ours.iterrows()}
    layers = ["layers.0 Block", "layers.1 Block", "layers.2 Block"]
    assert sorted(child.name for child in root.children) == ["embed Embedding", "head Linear", *layers]

    inner = trace.calls[~trace.calls["call"].isin(trace.calls["parent"].dropna())]
    operators = {row["name"]: row["calls"] for row in shown.operation_table_by_name["data"]}
    assert operators == Counter(inner["class"])
    shapes = {(row["name"], row["input_shape"]) for row in shown.operation_table_by_name_input["data"]}
    assert shapes == {("Linear", "[[1, 4]]"), ("Embedding", "[[1, 4]]")}
    kernels = {row[0]: row[2] for row in shown.kernel_table["data"]["rows"]}
    assert kernels == {"embed Embedding": 1, "proj Linear": 2, "head Linear": 2}
    of_root = ns(root.device_duration)
    assert of_root == inner[inner["path"] != "net.embed"]["device_ns"].sum()


@needs_plugin
def test_tensorboard_finds_frames_of_a_cpu(tmp_path: Path) -> None:
    from torch_tb_profiler.profiler.data import RunProfileData

    data = RunProfileData.from_json("worker", None, json.loads(render(two_runs(), "tensorboard")))
    assert data.steps_names == ["0", "1", "2", "3"]
    # What of a step is inside a module's innermost calls.
    assert [round(cost.costs[6], 3) for cost in data.steps_costs] == [0.08] * 4


@needs_plugin
@settings(max_examples=examples(25), deadline=None)
@given(st.lists(trees, min_size=1, max_size=4), st.lists(st.text(max_size=9), min_size=1, max_size=3))
def test_tensorboard_takes_any_calls(some: list[Tree], names: list[str]) -> None:
    from torch_tb_profiler.profiler.data import RunProfileData

    complaints: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("pytorch_profiler")
    logger.addHandler(handler)
    try:
        RunProfileData.from_json("worker", None, json.loads(render(trace_of(some, names, 2), "tensorboard")))
    finally:
        logger.removeHandler(handler)
    assert complaints == []


# ---- HolisticTraceAnalysis.


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@needs_hta
def test_what_hta_reads(tmp_path: Path, quiet: None) -> None:
    from hta.common.trace import Trace as Loaded

    for rank in (0, 1):
        trace = on_device()
        # It rounds to microseconds.
        calls = trace.calls.assign(**{name: trace.calls[name] * 1000 for name in trace.calls if name.endswith("_ns")})
        facts = {**trace.facts, "process": {"rank": rank, "world_size": 2, "backend": "nccl"}}
        (tmp_path / f"rank{rank}.pt.trace.json").write_bytes(
            render(replace(trace, calls=calls, facts=facts), "tensorboard")
        )
    loaded = Loaded(trace_dir=str(tmp_path))
    loaded.parse_traces(use_multiprocessing=False, use_memory_profiling=False)
    loaded.decode_symbol_ids(use_shorten_name=False)
    assert loaded.get_ranks() == [0, 1]
    assert loaded.get_iterations(1) == [0, 1]
    found = loaded.get_trace(1)
    name, category = ("s_name", "s_cat") if "s_name" in found else ("name", "cat")
    counted = Counter(found[category])
    assert counted == {"phase": 3, "user_annotation": 2, "python_function": 11, "cpu_op": 6, "runtime": 5, "kernel": 5}
    kernels = found[found[category] == "kernel"]
    assert sorted(kernels[name]) == ["embed Embedding", *["head Linear"] * 2, *["proj Linear"] * 2]
    assert kernels["dur"].sum() == sum([900, 1_300, 900, 500, 300])
    launches = found.loc[kernels["index_correlation"]]
    assert set(launches[category]) == {"runtime"}


# ---- The command.


def test_the_name_that_tensorboard_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_trace().save(tmp_path / "run.parquet")
    for name, said in (("run.json", True), ("run.pt.trace.json", False)):
        args = ["render", tmp_path / "run.parquet", "-f", "tensorboard", "-o", tmp_path / name]
        monkeypatch.setattr(sys, "argv", ["talkerviz", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        assert ("TensorBoard finds only files that end in .pt.trace.json" in capsys.readouterr().err) == said
        assert json.loads((tmp_path / name).read_text())["schemaVersion"] == 1
