"""`record`: warm-ups, repeats, and measures in runs of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Capture, talkerviz
from sample_trace import sample_trace
from torch import nn

import talkerviz as tv
from talkerviz.analysis.pivot import pivot
from talkerviz.render.registry import REGISTRY


def counted() -> tuple[nn.Module, Any, list[int]]:
    model, calls = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), list[int]()

    def run() -> None:
        calls.append(1)
        model(torch.ones(2, 4))

    return model, run, calls


def test_warm_ups_and_repeats() -> None:
    model, run, calls = counted()
    trace = tv.record(model, run, warmup=2, repeat=3)
    assert len(calls) == 5
    assert trace.calls["run"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len(trace.facts["warmup_ns"]) == 2
    assert trace.facts["repeat"] == 3
    plain = tv.record(model, run)
    assert not {"warmup_ns", "repeat"} & set(plain.facts)


def test_measures_in_runs_of_their_own(tmp_path: Path) -> None:
    model, run, calls = counted()
    file = tmp_path / "run.parquet"
    trace = tv.record(model, run, repeat=2, measure=("flow", "cost"), file=file)
    assert len(calls) == 4
    assert trace.calls["flops"].tolist() == [72, 64, 8] * 2
    assert trace.calls["host_ns"].notna().all()
    assert trace.flow is not None
    assert tv.Trace.load(file) == trace
    one = tv.record(model, run, measure="cost", file=file)
    assert len(calls) == 6
    assert one.calls["flops"].tolist() == [72, 64, 8]
    assert one.calls["host_ns"].notna().all()
    assert tv.Trace.load(file) == one
    # Without times there are none to keep apart.
    untimed = tv.record(model, run, measure=("cost", "flow"), clock="none", file=file)
    assert len(calls) == 8
    assert untimed.calls["flops"].tolist() == [72, 64, 8]
    assert untimed.flow is not None
    assert tv.Trace.load(file) == untimed


def only_warning(record: Callable[[], tv.Trace]) -> tuple[tv.Trace, str]:
    with pytest.warns(RuntimeWarning) as said:
        trace = record()
    assert len(said) == 1
    return trace, str(said[0].message)


@pytest.mark.parametrize("measure", ["cost", ["cost"]])
def test_a_measure_of_other_calls(measure: Any) -> None:
    model, sizes = nn.Linear(4, 4), iter((2, 3))
    run = lambda: model(torch.ones(next(sizes), 4))  # noqa: E731
    trace, said = only_warning(lambda: tv.record(model, run, measure=measure))
    assert said == (
        "measure 'cost': the second run differs at call 0, model, in its inputs: what is run must do the same each "
        "time that it is called; the trace has the times without it"
    )
    assert trace.calls["host_ns"].notna().all()
    assert trace.calls["flops"].isna().all()


def test_measures_of_a_run_that_fails_the_second_time() -> None:
    model, inputs = nn.Linear(4, 4), iter([torch.ones(2, 4)])
    trace, said = only_warning(lambda: tv.record(model, lambda: model(next(inputs)), measure=("flow", "cost")))
    assert said.startswith("measure 'flow' and 'cost': it raised StopIteration")
    assert trace.calls["host_ns"].notna().all()
    steps = iter([lambda: model(torch.ones(2, 4))])
    with pytest.raises(KeyboardInterrupt):
        tv.record(model, lambda: next(steps, interrupt)(), measure="flow")


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("measure", ["flow", ("flow",), ("flow", "cost")])
def test_measures_of_a_run_on_another_thread(measure: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def run() -> None:
        thread = threading.Thread(target=lambda: model(torch.ones(1, 4)))
        thread.start()
        thread.join()

    trace, said = only_warning(lambda: tv.record(model, run, measure=measure))
    assert "all calls were made on threads that are not watched" in said
    assert trace.calls["host_ns"].notna().all()
    assert trace.calls["flops"].isna().all()
    assert trace.flow is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model": [nn.ReLU()]},
            "the model must be a torch.nn.Module, not a list; several models go into a dict",
        ),
        ({"model": "relu"}, "the model must be a torch.nn.Module, not a str$"),
        ({"run": 3}, "run: neither inputs nor a function, but of type int; pass a tensor"),
        ({"warmup": -1}, "warmup must be at least 0, not -1"),
        ({"repeat": 0}, "repeat must be at least 1, not 0"),
        ({"measure": ("flow", "heat")}, "cannot measure 'heat': choose from cost"),
        ({"measure": ("flow", "busy")}, "'busy' needs a model on a CUDA device"),
        ({"measure": "memory"}, "'memory' needs a model on a CUDA device"),
        ({"file": "run.csv"}, r'run.csv: a trace is a Parquet file, such as run.parquet; trace.render\("csv"\)'),
    ],
)
def test_what_cannot_be_recorded(given: dict[str, Any], message: str) -> None:
    def run() -> None:
        raise AssertionError("nothing runs before this is told")

    with pytest.raises(ValueError, match=message):
        tv.record(**({"model": nn.ReLU(), "run": run, "warmup": 1} | given))


def test_no_recording_of_a_list() -> None:
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, not a list"), tv.recording([]):  # type: ignore[arg-type]
        pass


def test_a_trace_has_no_other_formats_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for suffix, fmt in [(suffix, entry.name) for entry in REGISTRY.values() for suffix in entry.suffixes]:
        with pytest.raises(ValueError, match="a trace is a Parquet file") as error:
            sample_trace().save(tmp_path / f"run{suffix}")
        assert f'trace.render("{fmt}")' in str(error.value) or suffix.endswith(".json")
    assert list(tmp_path.iterdir()) == []
    sample_trace().save(tmp_path / "a.parquet")
    for command in (["trace", "--preset", "tiny"], ["merge", str(tmp_path / "a.parquet")]):
        assert talkerviz(monkeypatch, *command, "-o", tmp_path / "run.svg") == 2
        assert "a trace is a Parquet file, such as run.parquet" in capsys.readouterr().err


def test_a_table_across() -> None:
    trace = sample_trace()
    calls = trace.calls.assign(phase=trace.calls["phase"].astype(object).where(trace.calls["frame"] != 1, "later"))
    two = tv.Trace(calls.astype({"phase": "category"}), trace.modules, trace.facts)
    assert two.table("class", across="phase", top=1).equals(pivot(two, "class", "phase").head(1))
    assert "later.calls" in two.table(across="phase")
    with pytest.raises(ValueError, match="across: unknown value 'frame'; choose from phase, part, rank"):
        two.table(across="frame")
