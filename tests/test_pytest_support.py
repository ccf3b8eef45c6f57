"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from sample_trace import sample_trace
from timelines import Tree, trace_of, trees
from torch import nn

import talkerviz as tv
from talkerviz.analysis import snapshot as baseline
from talkerviz.api import Trace
from talkerviz.pytest_support import TalkerTrace
from talkerviz.render.viewers.common import plain_values

pytest_plugins = ["pytester"]

TEST = """
import torch
from torch import nn

WIDTH = 4

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, WIDTH), nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, 3)))

def test_calls(talkertrace):
    model = build()
    trace = talkertrace(model, lambda: model(torch.zeros(1, 2)))
    talkertrace.assert_unchanged(trace)
"""
FILE = "talkertrace/test_model/test_calls.json"


def run_tests(pytester: pytest.Pytester, source: str, *args: str, **outcomes: int) -> str:
    """Run pytest on a test file; gives what it printed."""
    pytester.makepyfile(test_model=source)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", *args)
    result.assert_outcomes(**outcomes)
    return "\n".join(line.removeprefix("E").strip() for line in result.outlines)


def test_a_baseline(pytester: pytest.Pytester) -> None:
    path = pytester.path / FILE
    said = run_tests(pytester, TEST, failed=1)
    assert f"{path}: no such baseline yet; write it with pytest --talkertrace-update, and commit it" in said
    assert not path.exists()
    run_tests(pytester, TEST, "--talkertrace-update", passed=1)
    written = path.read_bytes()
    run_tests(pytester, TEST, passed=1)
    run_tests(pytester, TEST, "--talkertrace-update", passed=1)
    assert path.read_bytes() == written
    lines = written.decode().splitlines()
    assert len(lines) == 2 + 5
    assert json.loads(lines[2].rstrip(",")) == {
        "depth": 1, "path": "model.0", "class": "Linear", "phase": "forward", "frame": 0,
        "inputs": [["0", [1, 2], "float32"]], "outputs": [["output", [1, 4], "float32"]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("WIDTH = 4", "WIDTH = 5", ["~  model.1.1", "1x4 → 1x3 ⇒ 1x5 → 1x3", '"outputs": [["output", [1, 5], ']),
        ("nn.ReLU()", "nn.GELU()", ["model.1.0", "ReLU ⇒ GELU"]),
        ("nn.Linear(WIDTH, 3)", "nn.Linear(WIDTH, 3), nn.Tanh()", ["+  model.1.2", "Tanh"]),
        ("zeros(1, 2)", "zeros(1, 2, dtype=torch.float64)", ['[1, 2], "float64"']),
        # What a picture folds away.
        ("lambda: model(", "lambda: model(torch.zeros(1, 2)) + model(", ['+{"depth": 0', '"frame": 1']),
    ],
)  # fmt: skip
def test_what_changed(old: str, new: str, said: list[str], pytester: pytest.Pytester) -> None:
    assert old in TEST
    run_tests(pytester, TEST, "--talkertrace-update", passed=1)
    changed = TEST.replace(old, new)
    if "float64" in new:
        changed = changed.replace("model = build()", "model = build().double()")
    shown = run_tests(pytester, changed, failed=1)
    for text in (f"the calls are not those of {pytester.path / FILE}", "pytest --talkertrace-update", *said):
        assert text in shown
    assert "Traceback" not in shown
    run_tests(pytester, changed, "--talkertrace-update", passed=1)
    run_tests(pytester, changed, passed=1)


def test_names_of_baselines(pytester: pytest.Pytester) -> None:
    source = """
import pytest, torch
from torch import nn

class TestIt:
    @pytest.mark.parametrize("kind", ["a/b", "a:b"])
    def test_kind(self, kind, talkertrace):
        model = nn.ReLU()
        trace = talkertrace(model, lambda: model(torch.zeros(len(kind))), warmup=1, repeat=3)
        talkertrace.assert_unchanged(trace)
        talkertrace.assert_unchanged(trace, "../own")

def test_twice(talkertrace):
    model = nn.ReLU()
    trace = talkertrace(model, lambda: model(torch.zeros(1)), include=["model"])
    talkertrace.assert_unchanged(trace)
    talkertrace.assert_unchanged(trace)
"""
    said = run_tests(pytester, source, "--talkertrace-update", passed=2, failed=1)
    assert "'test_twice': already checked in this test; give each trace its own name" in said
    names = {path.name for path in (pytester.path / "talkertrace" / "test_model").iterdir()}
    kinds = {f"TestIt.test_kind[a%{letter}b].json" for letter in ("2F", "3A")}
    assert names == {*kinds, "..%2Fown.json", "test_twice.json"}
    for name in names:  # one run of several
        found = baseline.read_snapshot(pytester.path / "talkertrace" / "test_model" / name)
        assert [call["frame"] for call in found] == [0]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": "talkertrace 1"}', '{"format": "talkertrace 2", "calls": []}']
)
def test_a_damaged_baseline(text: str, tmp_path: Path) -> None:
    check = TalkerTrace(tmp_path, "it", False)
    (tmp_path / "it.json").write_text(text)
    with pytest.raises(ValueError, match=r"it\.json: not a baseline; write it again with pytest --talkertrace-update"):
        check.assert_unchanged(sample_trace())


@given(st.lists(trees, min_size=1, max_size=4), st.lists(st.text(max_size=9), min_size=1, max_size=3))
@settings(deadline=None, max_examples=examples(40))
def test_any_calls_come_back(some: list[Tree], names: list[str]) -> None:
    trace = trace_of(some, names, threads=2)
    calls = baseline.snapshot_calls(trace)
    again = baseline.trace_from_calls(json.loads(baseline.calls_to_json(calls))["calls"])
    assert baseline.snapshot_calls(again) == calls
    ours = trace.calls.sort_values("thread", kind="stable")
    for name in ("thread", "depth", "path", "class", "phase", "frame"):
        assert plain_values(again.calls[name]) == plain_values(ours[name])
    # Callers as well, by their new numbers.
    number = dict(zip(ours["call"], again.calls["call"], strict=True))
    assert again.calls["parent"].fillna(-1).tolist() == [number.get(parent, -1) for parent in ours["parent"].fillna(-1)]


def test_calls_of_what_was_selected_and_of_nothing() -> None:
    chosen = sample_trace().select(module="net.layers.1")
    calls = baseline.snapshot_calls(chosen)
    assert [call["depth"] for call in calls] == [1, 2]
    assert baseline.trace_from_calls(calls).calls["parent"].fillna(-1).tolist() == [-1, 0]
    assert baseline.trace_from_calls([]).calls.empty
    assert baseline.snapshot_calls(baseline.trace_from_calls([])) == []


def recorded(repeat: int = 20) -> Trace:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return TalkerTrace(Path(), "it", False)(model, lambda: model(torch.zeros(1, 2)), warmup=1, repeat=repeat)


def times(trace: Trace, by: float) -> Trace:
    """Return the same with other times, which grow a little from run to run and are so many times as long."""
    calls = trace.calls
    own = pd.Series(1_000 + calls["run"].to_numpy() % 5) * (1 + (calls["path"] == "model.0") * (by - 1))
    own = own.round().astype("int64")
    whole = own.where(calls["depth"] > 0, own.groupby(calls["run"]).transform("sum"))
    return replace(trace, calls=calls.assign(host_self_ns=own.astype("Int64"), host_ns=whole.astype("Int64")))


def test_not_slower(tmp_path: Path) -> None:
    trace = recorded()
    assert trace.calls["run"].nunique() == 20
    assert len(trace.facts["warmup_ns"]) == 1
    before, after = times(trace, 1.0), times(trace, 1.6)
    check = TalkerTrace(tmp_path, "it", False)
    check.assert_not_slower(before, before, percent=0)
    check.assert_not_slower(after, before, percent=25)
    check.assert_not_slower(before, after, percent=0)
    with pytest.raises(pytest.fail.Exception) as failure:
        check.assert_not_slower(after, before, percent=10)
    said = str(failure.value)
    assert said.startswith("slower by more than 10 %: forward\n")
    assert "+60.0 %" in said
    assert "model.0" in said
    before.save(tmp_path / "before.parquet")
    with pytest.raises(pytest.fail.Exception, match=r"\+60\.0 %"):
        check.assert_not_slower(after, tmp_path / "before.parquet", percent=10)


def test_times_that_say_nothing() -> None:
    check, trace = TalkerTrace(Path(), "it", False), recorded(repeat=1)
    with pytest.raises(ValueError, match=r"no phase has two frames in both traces.*record more with repeat"):
        check.assert_not_slower(trace, trace, percent=10)
    other = replace(trace, facts={**trace.facts, "threads": 96})
    with pytest.raises(ValueError, match=r"than: recorded with threads 96, not .*; compare traces of the same machine"):
        check.assert_not_slower(trace, other, percent=10)
    untimed = tv.record(nn.ReLU(), lambda: None, clock="none")
    with pytest.raises(ValueError, match="the first trace has no times"):
        check.assert_not_slower(untimed, untimed, percent=10)


def test_it_is_a_plugin_that_costs_nothing() -> None:
    """Pytest loads it wherever talkerviz is installed: without a test that asks, nothing else may be imported."""
    (plugin,) = entry_points(group="pytest11", name="talkerviz")
    assert plugin.value == "_talkerviz_pytest"
    code = (
        f"import {plugin.value}, sys; print([name for name in ('torch', 'talkerviz', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
