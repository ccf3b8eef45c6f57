"""Grouping calls."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from sample_trace import call, make_trace, sample_trace, tensor
from torch import nn

import talkerviz as tv
from talkerviz.analysis.summary import BY, summarise


def test_parameters_are_distinct_ones_as_stored() -> None:
    tied = nn.ModuleDict({"embedding": nn.Embedding(100, 16), "head": nn.Linear(16, 100, bias=False)})
    tied["head"].weight = tied["embedding"].weight
    shared = nn.Linear(10, 10)
    model = nn.ModuleDict({"tied": tied, "a": nn.Sequential(shared), "b": nn.Sequential(shared)})

    def run() -> None:
        tied["head"](tied["embedding"](torch.tensor([1])))
        for name in ("a", "b"):
            model[name](torch.zeros(1, 10))

    sizes = tv.record(model, run).table("module").set_index("module")["parameters"].to_dict()
    assert sizes == {
        "model.tied.embedding": 1600, "model.tied.head": 1600, "model.a": 110, "model.a.0": 110, "model.b": 110,
    }  # fmt: skip
    assert {info.path: info.parameters for info in tv.record(model, run).modules}["model"] == 1600 + 110


class Int8Weight(torch.Tensor):
    """A weight [out, in] in 8 bits with a scale for each row, which says that it is float32."""

    @staticmethod
    def __new__(cls, values: torch.Tensor, scale: torch.Tensor) -> Int8Weight:
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)  # type: ignore[attr-defined]

    def __init__(self, values: torch.Tensor, scale: torch.Tensor) -> None:
        self.values_, self.scale = values, scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values_, args[0].scale)
        plain = [each.values_ * each.scale if isinstance(each, cls) else each for each in args]
        return func(*plain, **(kwargs or {}))


def test_quantised_weights_have_the_bytes_that_they_hold() -> None:
    model = nn.Linear(64, 32, bias=False)
    weight = Int8Weight(torch.ones(32, 64, dtype=torch.int8), torch.ones(32, 1))
    model.weight = nn.Parameter(weight, requires_grad=False)
    with torch.no_grad():
        trace = tv.record(model, lambda: model(torch.zeros(1, 64)), measure="cost")
    assert trace.facts["weights_bytes"] == 32 * 64 + 32 * 4
    assert trace.table("module")["parameter_bytes"].tolist() == [32 * 64 + 32 * 4]
    assert trace.table("module")["parameters"].tolist() == [32 * 64]
    assert trace.calls["bytes_read"].tolist() == [32 * 64 + 32 * 4 + 64 * 4]
    assert trace.calls["flops"].tolist() == [32 * 64 + 2 * 32 * 64]  # the weights times their scales, and the product


def test_nested_calls_are_not_counted_twice() -> None:
    rows = [
        call(0, None, 0, "net", "Block", 100, 30),
        call(1, 0, 1, "net.inner", "Other", 70, 30),
        call(2, 1, 2, "net.inner.block", "Block", 40, 40),
    ]
    by_class = summarise(make_trace(rows), "class").set_index("class")
    assert by_class["total_ns"].to_dict() == {"Block": 100, "Other": 70}
    assert by_class["self_ns"].to_dict() == {"Block": 70, "Other": 30}
    assert by_class["calls"].to_dict() == {"Block": 2, "Other": 1}


def test_shapes_of_calls_say_how_many_more_tensors_there_are() -> None:
    two, three = (tuple(tensor(str(place), 1, 4) for place in range(count)) for count in (2, 3))
    rows = [call(0, None, 0, "net", "Net", 9, 9), call(1, None, 0, "net", "Net", 8, 8, inputs=two, outputs=three)]
    trace = make_trace([*rows, call(2, None, 0, "net", "Net", 7, 7, inputs=(), outputs=two)])
    assert trace.table("call")["shapes"].tolist() == ["1x4 → 1x4", "1x4 +1 → 1x4 +2", "→ 1x4 +1"]
    assert trace.table("module")["shapes"].tolist() == ["1x4 → 1x4 (+1)"]  # another shape, not another tensor


@pytest.mark.parametrize("by", BY)
def test_shares_and_calls_sum_up(by: str) -> None:
    trace = sample_trace()
    summary = summarise(trace, by)
    assert summary["share"].sum() == pytest.approx(1)
    assert summary["calls"].sum() == len(trace.calls)
    assert summary["self_ns"].sum() == trace.calls["host_self_ns"].sum()


@pytest.mark.parametrize("by", BY)
def test_unmeasured_is_missing_not_zero(by: str) -> None:
    nothing = {"host_start_ns": None, "host_ns": None, "host_self_ns": None}
    summary = summarise(make_trace([call(0, None, 0, "net", "Net", 0, 0) | nothing]), by)
    assert summary[["total_ns", "self_ns", "mean_ns", "p50_ns", "p95_ns", "share"]].isna().all(axis=None)


def test_quantiles() -> None:
    rows = [call(n, None, 0, "net", "Net", (n + 1) * 100, (n + 1) * 100) for n in range(101)]
    row = summarise(make_trace(rows)).iloc[0]
    assert (row["mean_ns"], row["p50_ns"], row["p95_ns"]) == (5_100, 5_100, 9_600)


def test_sorts() -> None:
    trace = sample_trace()
    assert summarise(trace, "phase")["phase"].tolist() == ["setup", "decode"]
    assert summarise(trace, "phase", "self")["phase"].tolist() == ["decode", "setup"]
    assert summarise(trace, "module", "total")["module"][0] == "net"
    with pytest.raises(ValueError, match="cannot group by 'x'"):
        summarise(trace, "x")
    with pytest.raises(ValueError, match="cannot sort by 'x'"):
        summarise(trace, "module", "x")


def test_a_selection_without_the_callers() -> None:
    trace = sample_trace()
    setup = summarise(trace.select(phase="setup"))
    assert setup["module"].tolist() == ["net.embed"]
    assert setup["share"].tolist() == [1.0]


@settings(max_examples=examples(40), deadline=None)  # the first table takes longer than the others
@given(st.data())
def test_total_is_what_a_walk_finds(data: st.DataObject) -> None:
    parents = [data.draw(st.integers(-1, n - 1)) for n in range(data.draw(st.integers(1, 12)))]
    rows = []
    for number, parent in enumerate(parents):
        kind = data.draw(st.sampled_from("AB"))
        rows.append(
            call(number, None if parent < 0 else parent, 0, f"net.{kind}", kind, data.draw(st.integers(1, 99)), 1)
        )

    def has_ancestor_of_its_kind(number: int) -> bool:
        above = parents[number]
        while above >= 0:
            if rows[above]["class"] == rows[number]["class"]:
                return True
            above = parents[above]
        return False

    expected: dict[str, int] = {}
    for number, row in enumerate(rows):
        add = 0 if has_ancestor_of_its_kind(number) else row["host_ns"]
        expected[row["class"]] = expected.get(row["class"], 0) + add
    found = summarise(make_trace(rows), "class")
    assert dict(zip(found["class"], found["total_ns"], strict=True)) == expected
    assert isinstance(found, pd.DataFrame)


def test_parameters_of_a_module_and_all_below_it() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU()))
    summary = summarise(tv.record(model, lambda: model(torch.zeros(1, 4))), "module").set_index("module")
    expected = {"model": 21, "model.0": 15, "model.1": 6, "model.1.0": 6, "model.1.1": 0}
    assert summary["parameters"].to_dict() == expected
    assert summary["parameter_bytes"].to_dict() == {path: 4 * count for path, count in expected.items()}
