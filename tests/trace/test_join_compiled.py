"""Measures of other runs joined to a run with compiled code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compiled_models import Broken, by_forward, in_place, whole, wrapped
from small_model import Block, made, tree, values
from torch import nn

import talkerviz as tv
from talkerviz.trace.join import join

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def measured(model: nn.Module, run: Callable[[], object], measure: str | None = None) -> tv.Trace:
    return tv.record(model, run, measure=measure)


def joined(model: nn.Module, run: Callable[[], object]) -> tv.Trace:
    """Return the trace of `trace --warmup 1 --cost`."""
    with torch.no_grad():
        run()
    plain = measured(model, run)
    return join(join(plain, measured(model, run, "flow")), measured(model, run, "cost"))


def edges_of(trace: tv.Trace) -> set[tuple[str, str]]:
    """Which calls, by path, read what others made; inputs by name."""
    assert trace.flow is not None
    ops, paths = trace.flow.ops, dict(zip(trace.calls["call"], trace.calls["path"], strict=True))
    names = [paths.get(op.call, op.name) for op in ops.itertuples()]
    pairs = trace.flow.edges[["source", "target"]].itertuples(index=False)
    return {(names[source], names[target]) for source, target in pairs if names[source] != names[target]}


@pytest.mark.parametrize("block", [Block, Broken])
@pytest.mark.parametrize("way", [wrapped, in_place, by_forward, whole])
def test_what_runs_inside_is_the_compiled_call_s(way: Any, block: type[Block]) -> None:
    model, x = made(block), values()
    plain = measured(model, lambda: model(x), "cost").calls.set_index("path")
    way(model, "eager")
    trace = joined(model, lambda: model(x))
    calls = trace.calls.set_index("path")
    lines = ["", " block", " last"] if way is not whole else ["", " block"] if block is Broken else [""]
    assert tree(trace) == lines
    for column in ("flops", "bytes_read", "bytes_written"):
        assert calls[column].tolist() == plain.loc[calls.index, column].tolist()
    assert trace.flow is not None
    assert set(trace.flow.ops["call"]) <= {-1, *trace.calls["call"]}
    assert set(trace.flow.ops["after"]) <= {-1, *trace.calls["call"]}
    expected = {("x", "model.block"), ("model.block", "model.last")} if way is not whole else set()
    assert edges_of(trace) >= expected


class Shared(nn.Module):
    """A layer, and what it is called with: a module that is another's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(4, 4)
        self.layer = nn.Module()
        self.layer.forward = lambda x, turn: turn(x).relu()  # type: ignore[method-assign]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.turn(self.layer(x, self.turn))


def test_a_module_that_is_called_inside_and_behind() -> None:
    model, x = Shared(), values()
    model.layer.compile(backend="eager")
    trace = joined(model, lambda: model(x))
    assert trace.calls["path"].tolist() == ["model", "model.layer", "model.turn"]
    assert trace.calls["flops"].tolist() == [96 + 12 + 96, 96 + 12, 96]
    assert edges_of(trace) == {("x", "model.layer"), ("model.layer", "model.turn")}


def test_what_runs_uncompiled_for_a_while_keeps_its_calls() -> None:
    model, x = made(), values()
    in_place(model, "eager")

    def run() -> None:
        with torch.compiler.set_stance("force_eager"):
            model(x)
        model(x)

    trace = joined(model, run)
    names = [path.removeprefix("model") for path in trace.calls["path"]]
    inner = [".first", ".second", ".second.0", ".second.1"]
    assert names == ["", ".block", *(f".block{name}" for name in inner), ".last", "", ".block", ".last"]
    assert trace.calls["flops"].tolist()[:7] == [96 + 12 + 96 + 12, 204, 96, 108, 12, 96, 12]
    assert trace.calls["flops"].tolist()[7:] == [216, 204, 12]


def test_modules_recorded_without_the_one_that_is_compiled() -> None:
    model, x = made(), values()
    in_place(model, "eager")
    plain, costs = (
        tv.record(model, lambda: model(x), measure=measure, include=["model.last", "model.block.first"])
        for measure in (None, "cost")
    )
    assert join(plain, costs).calls["path"].tolist() == ["model.last"]


def test_another_run_is_another_still() -> None:
    model, x = made(), values()
    in_place(model, "eager")
    with torch.no_grad():
        model(x)
    once = measured(model, lambda: model(x))
    with pytest.raises(ValueError, match="the second run made 6 calls, the first 3"):
        join(once, measured(model, lambda: [model(x), model(x)], "cost"))
