"""Compilers and tracers make the same of a model that is being recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_models import Broken, by_forward, in_place, whole, wrapped
from small_model import CALLS, Block, Model, made, shapes, state, tree, values
from taps import every_way, tap_alone
from torch import nn
from torch._dynamo.utils import counters

import talkerviz as tv
from talkerviz.recorder.phases.talker import TalkerPhases

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


class Compiler:
    """A backend that counts graphs, and leaves them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def compile_and_run(
    way: Callable[[Model, Any], None], block: type[Block], when: str, recorded: bool
) -> tuple[list[torch.Tensor], list[Any], tv.Trace | None]:
    """Return outputs, Dynamo's work and the trace; compiled before a recording, or inside it."""
    torch._dynamo.reset()
    counters.clear()
    model, backend, x = made(block), Compiler(), values()
    if when != "inside":
        way(model, backend)
    if when == "warm":
        model(x)
    before = state(model)
    with tv.recording(model) if recorded else nullcontext() as rec:
        if when == "inside":
            way(model, backend)
        outputs = [model(x), model(x), model(values(rows=2)), model(x)]
    assert when != "warm" or state(model) == before
    outputs.append(model(x))
    work = [backend.graphs, *(dict(counters[name]) for name in ("stats", "frames", "graph_break"))]
    return outputs, work, rec.trace if rec is not None else None


UNTRACED = functools.cache(functools.partial(compile_and_run, recorded=False))


@tap_alone
@pytest.mark.parametrize("block", [Block, Broken])
@pytest.mark.parametrize("way", [wrapped, in_place, by_forward, whole])
def test_a_compiled_region(any_tap: str, way: Any, block: type[Block]) -> None:
    """One call, compiled as without a recording; of what runs between the graphs of a broken one, calls are seen."""
    try:
        for when in ("warm", "made", "inside"):
            expected, plain_work, _ = UNTRACED(way, block, when)
            outputs, work, trace = compile_and_run(way, block, when, recorded=True)
            assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))
            assert work == plain_work, when
            lines = ["", " block", " last"] if way is not whole else ["", " block"] if block is Broken else [""]
            assert trace is not None
            assert tree(trace) == lines * 4
            region = "model" if way is whole else "model.block"
            assert trace.facts.get("one_call") == (None if when == "inside" else {region: "compiled"})
    finally:
        torch._dynamo.reset()


@every_way
@pytest.mark.parametrize("block", [Block, Broken])
@pytest.mark.parametrize("way", [wrapped, by_forward])
def test_hooks_leave_a_compiled_region_as_it_is(any_tap: str, way: Any, block: type[Block]) -> None:
    try:
        for when in ("warm", "made"):
            expected, plain_work, _ = UNTRACED(way, block, when)
            outputs, work, trace = compile_and_run(way, block, when, recorded=True)
            assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))
            assert work == plain_work, when
            assert trace is not None
            assert tree(trace) == ["", " block", " last"] * 4
    finally:
        torch._dynamo.reset()


@tap_alone
def test_a_phase_rule_of_one_s_own_is_not_compiled(any_tap: str) -> None:
    """Dynamo is at work around a graph break, and must stay out of what the recorder calls there."""

    class Rule(TalkerPhases):
        seen: list[str]

        def entered(self, path: str, kwargs: Any) -> Any:
            self.seen.append(path)
            return super().entered("model", kwargs)

    _, plain_work, _ = UNTRACED(whole, Broken, "made")
    torch._dynamo.reset()
    counters.clear()
    try:
        model, backend, x, rule = made(Broken), Compiler(), values(), Rule("model")
        rule.seen, rule.landmarks = [], frozenset({"model.block"})
        whole(model, backend)
        with tv.recording(model, phases=lambda root: rule) as rec:
            for rows in (3, 3, 2, 3):
                model(values(rows=rows))
        model(x)
        work = [backend.graphs, *(dict(counters[name]) for name in ("stats", "frames", "graph_break"))]
        assert work == plain_work
        assert rule.seen == ["model.block"] * 4
        assert rec.trace.calls["frame"].max() == 3
    finally:
        torch._dynamo.reset()


def test_a_region_compiled_to_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._dynamo.reset()
    model, x = made(nn.Tanh), values()
    model.block.compile()
    try:
        with torch._inductor.config.patch(cpp_cache_precompile_headers=False):  # they are kept elsewhere
            expected = model(x)
    except Exception as error:  # no compiler, or one that fails
        pytest.skip(f"inductor does not work here: {type(error).__name__}")
    try:
        before = state(model)
        with tv.recording(model) as rec, torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(model(x), expected)
        assert state(model) == before
        assert tree(rec.trace) == ["", " block", " last"]
        assert rec.trace.facts["one_call"] == {"model.block": "compiled"}
    finally:
        torch._dynamo.reset()


@every_way
def test_scripted_and_traced_modules_are_one_call(any_tap: str) -> None:
    x = values()
    for how in (torch.jit.script, lambda module: torch.jit.trace(module, x)):
        model = made()
        model.block = how(model.block)
        expected, before = model(x), state(model)
        with tv.recording(model) as rec:
            assert torch.equal(model(x), expected)
        assert state(model) == before
        # A scripted module calls hooks that were scripted with it, and no others.
        assert tree(rec.trace) == (["", " block", " last"] if any_tap == "tap" else ["", " last"])
        assert rec.trace.facts["one_call"] == {"model.block": "scripted"}


@every_way
def test_torch_s_own_tracers_make_the_same_of_a_watched_model(any_tap: str) -> None:
    model, x = made().eval(), values()
    rows = {"x": {0: torch.export.Dim("rows", min=2, max=64)}}
    tracers: dict[str, Callable[[], Any]] = {
        "jit": lambda: torch.jit.trace(model, x).code,
        "fx": lambda: torch.fx.symbolic_trace(model).code,
        "export": lambda: str(torch.export.export(model, (x,)).graph),
        "rows": lambda: str(torch.export.export(model, (x,), dynamic_shapes=rows).graph),
        "strict": lambda: str(torch.export.export(model, (x,), dynamic_shapes=rows, strict=True).graph),
    }
    plain = {name: tracer() for name, tracer in tracers.items()}
    before = state(model)
    with tv.recording(model) as rec:
        found = {name: tracer() for name, tracer in tracers.items()}
        model(x)
    assert found == plain
    assert state(model) == before
    assert tree(rec.trace)[-len(CALLS) :] == CALLS
    assert shapes(rec.trace.calls["inputs"].iloc[-1]) == [("0", (3, 4))]
    torch._dynamo.reset()


@every_way
def test_functional_transforms(any_tap: str) -> None:
    model, x = made(), values()
    weights = dict(model.named_parameters())
    runs: list[Callable[[], torch.Tensor]] = [
        lambda: torch.func.vmap(model)(x.expand(2, 3, 4)),
        lambda: torch.func.grad(lambda x: model(x).sum())(x),
        lambda: torch.func.functional_call(model, weights, (x,)),
    ]
    for run in runs:
        expected = run()
        with tv.recording(model) as rec:
            assert torch.equal(run(), expected)
        assert tree(rec.trace) == CALLS
        assert shapes(rec.trace.calls["inputs"][0]) == [("0", (3, 4))]
