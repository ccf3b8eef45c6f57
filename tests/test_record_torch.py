"""Recordings of what real models do: the traced run is the untraced run."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from taps import any_tap, both_taps  # noqa: F401
from torch import nn
from torch.utils.checkpoint import checkpoint

import talkerviz as tv

dynamo = torch._dynamo.variables.nn_module


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block())


BLOCKS = ["model", "model.0", "model.0.first", "model.0.second", "model.1", "model.1.first", "model.1.second"]


@pytest.fixture(autouse=True)
def _all_is_as_before() -> Iterator[None]:
    def now() -> list[Any]:
        return [nn.Module.__call__, nn.Module._replicate_for_data_parallel, dynamo.unpatched_nn_module_call]

    before = now()
    yield
    assert now() == before
    torch._dynamo.reset()


def paths(trace: tv.Trace) -> list[str]:
    return [str(path) for path in trace.calls["path"]]


def state(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module; what is mutable, by what it holds."""
    return {
        f"{path}.{name}": list(value.items()) if isinstance(value, dict) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if not isinstance(value, torch.Tensor)
    }


@both_taps
def test_copies_made_inside_run_their_own_weights(any_tap: str) -> None:  # noqa: F811
    model, x = stack(), torch.ones(1, 4)
    with tv.recording(model) as rec:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0].first.weight.zero_()
        other_out, own_out = other(x), model(x)
    assert paths(rec.trace) == BLOCKS  # the copy is not the model
    assert torch.equal(other_out, other(x))
    assert torch.equal(own_out, model(x))
    assert not torch.equal(own_out, other_out)


@both_taps
def test_replicas_are_recorded_as_their_originals(any_tap: str) -> None:  # noqa: F811
    """As torch.nn.parallel.replicate wires them, each run in a thread of its own."""

    def replicate(module: nn.Module) -> nn.Module:
        replica = module._replicate_for_data_parallel()
        for name, child in module.named_children():
            setattr(replica, name, replicate(child))
        for name, parameter in module.named_parameters(recurse=False):
            setattr(replica, name, parameter)
        return replica

    model, x = stack(), torch.ones(1, 4)
    expected = model(x)
    found: list[torch.Tensor] = []
    with tv.recording(model) as rec:
        replicas = [replicate(model) for _ in range(3)]
        threads = [threading.Thread(target=lambda one=one: found.append(one(x))) for one in replicas]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(out, expected) for out in found)
    for _, calls in rec.trace.calls.groupby("thread"):
        assert calls["path"].tolist() == BLOCKS
        assert calls["depth"].tolist() == [0, 1, 2, 2, 1, 2, 2]


@both_taps
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(any_tap: str, use_reentrant: bool) -> None:  # noqa: F811
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = stack()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=use_reentrant)
            return x

    model = Checkpointed()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(torch.ones(2, 4, requires_grad=True)).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    with tv.recording(model) as rec:
        found = gradients()
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    calls = rec.trace.calls
    assert calls["error"].isna().all()  # ending a recomputation early is no error
    again = calls[(calls["depth"] == 0) & (calls["path"] != "model")]
    assert again["path"].tolist() == ["model.blocks.1", "model.blocks.0"]


class Counting:
    """A compiler that counts what it is asked to compile, and leaves it as it is."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def in_place(block: nn.Module, backend: Counting) -> nn.Module:
    block.compile(backend=backend)
    return block


def by_forward(block: nn.Module, backend: Counting) -> nn.Module:
    block.forward = torch.compile(block.forward, backend=backend)
    return block


def by_wrapper(block: nn.Module, backend: Counting) -> nn.Module:
    return torch.compile(block, backend=backend)


@both_taps
@pytest.mark.parametrize("before", [True, False], ids=["compiled before", "compiled inside"])
@pytest.mark.parametrize("how", [in_place, by_forward, by_wrapper])
def test_a_compiled_region_is_one_call(any_tap: str, how: Any, before: bool) -> None:  # noqa: F811
    backend, x = Counting(), torch.ones(1, 4)
    model = stack()
    expected = model(x)
    model[0] = how(model[0], backend)
    if before:
        model(x)
        assert backend.graphs == 1
    kept = state(model)
    with tv.recording(model) as rec:
        assert torch.equal(model(x), expected)
        assert torch.equal(model(x), expected)
    if before:
        assert state(model).keys() == kept.keys()
    assert backend.graphs == 1  # nor compiled again, nor in pieces
    assert torch.equal(model(x), expected)
    assert backend.graphs == 1
    inside = [path for path in paths(rec.trace) if path.startswith("model.0.") and "_orig_mod" not in path]
    assert inside == []
    assert paths(rec.trace).count("model.0") == 2
    assert paths(rec.trace).count("model.1.first") == 2
    assert rec.trace.facts["one_call"] == {"model.0": "compiled"}


def test_a_compiled_function_over_modules() -> None:
    backend, model, x = Counting(), stack(), torch.ones(1, 4)
    compiled = torch.compile(lambda x: model[1](model[0](x)) + 1, backend=backend)
    expected = model(x) + 1
    with tv.recording(model) as rec:
        assert torch.equal(compiled(x), expected)
    assert torch.equal(compiled(x), expected)
    assert backend.graphs == 1
    assert paths(rec.trace) == []


def test_what_runs_between_the_pieces_of_a_region() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Block()

        @torch._dynamo.disable
        def eager(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.eager(x + 1) * 2

    backend, model, x = Counting(), Breaks(), torch.ones(1, 4)
    expected = model(x)
    model.compile(backend=backend)
    with tv.recording(model) as rec:
        assert torch.equal(model(x), expected)
    graphs = backend.graphs
    assert torch.equal(model(x), expected)
    assert backend.graphs == graphs
    assert paths(rec.trace) == ["model", "model.inner", "model.inner.first", "model.inner.second"]


@both_taps
def test_tracing_by_torch_inside_a_recording(any_tap: str) -> None:  # noqa: F811
    model, x = stack().eval(), torch.ones(1, 4)
    varying = {"dynamic_shapes": ({0: torch.export.Dim("rows", min=1, max=64)},)}
    plain = torch.export.export(model, (torch.ones(3, 4),), **varying)
    expected = model(x)
    with tv.recording(model):
        traced = torch.jit.trace(model, x)
        symbolic = torch.fx.symbolic_trace(model)
        exported = torch.export.export(model, (x,))
        dynamic = torch.export.export(model, (torch.ones(3, 4),), **varying)
    assert [str(node) for node in dynamic.graph.nodes] == [str(node) for node in plain.graph.nodes]
    for other in (traced, symbolic, exported.module(), dynamic.module()):
        assert torch.equal(other(x), expected)
    assert [node.target for node in symbolic.graph.nodes if node.op == "call_module"] == [
        "0.first", "0.second", "1.first", "1.second",
    ]  # fmt: skip


@both_taps
def test_hooks_and_replaced_forwards_work_as_ever(any_tap: str) -> None:  # noqa: F811
    model, x = stack(), torch.ones(1, 4)
    own, said = model[0].forward, []
    model[0].forward = lambda *args, **kwargs: own(*args, **kwargs) * 2  # as accelerate does
    model[0].register_forward_pre_hook(lambda module, args, kwargs: said.append("pre"), with_kwargs=True)
    model[1].register_forward_hook(lambda module, args, output: output + 1)
    model[1].first.register_full_backward_hook(lambda *args: said.append("back"))
    every = nn.modules.module.register_module_forward_hook(lambda *args: said.append("any"))
    try:
        expected, before = model(x), state(model)
        said_once, said[:] = list(said), []
        for _ in range(2):
            with tv.recording(model) as rec:
                out = model(x)
            assert torch.equal(out, expected)
            assert said == said_once
            said.clear()
            assert paths(rec.trace) == BLOCKS
            assert state(model) == before
    finally:
        every.remove()


@both_taps
def test_recordings_within_and_beside_each_other(any_tap: str) -> None:  # noqa: F811
    one, two, x = stack(), nn.Sequential(Block()), torch.ones(1, 4)
    with tv.recording(one) as outer:
        one(x)
        with tv.recording(one) as inner, tv.recording(two) as other:
            one(two(x))
        one(x)
    assert paths(outer.trace) == BLOCKS * 3
    assert paths(inner.trace) == BLOCKS
    assert paths(other.trace) == BLOCKS[:4]

    # Ended in the order in which they began.
    first, second = ExitStack(), ExitStack()
    a, b = first.enter_context(tv.recording(one)), second.enter_context(tv.recording(two))
    two(one(x))
    first.close()
    two(one(x))
    second.close()
    assert paths(a.trace) == BLOCKS
    assert paths(b.trace) == BLOCKS[:4] * 2


@both_taps
def test_recordings_in_two_threads(any_tap: str) -> None:  # noqa: F811
    models = [stack() for _ in range(2)]
    traces: list[tv.Trace] = []
    together = threading.Barrier(2)

    def work(model: nn.Module) -> None:
        together.wait()
        for _ in range(10):
            traces.append(tv.record(model, lambda: [model(torch.ones(1, 4)) for _ in range(5)]))

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(traces) == 20
    assert all(paths(trace) == BLOCKS * 5 for trace in traces)


@both_taps
def test_a_generator_s_calls_are_made_when_it_runs(any_tap: str) -> None:  # noqa: F811
    class Streams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
            for row in x:
                yield self.inner(row)

    model = Streams()
    with tv.recording(model) as rec:
        rows = list(model(torch.ones(3, 2)))
    assert len(rows) == 3
    assert paths(rec.trace) == ["model"] + ["model.inner"] * 3
    assert rec.trace.calls["depth"].tolist() == [0] * 4


@both_taps
def test_a_module_under_two_names_and_called_again_inside_itself(any_tap: str) -> None:  # noqa: F811
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Identity()
            self.two = self.one

        def forward(self, x: torch.Tensor, times: int = 2) -> torch.Tensor:
            return self(self.two(self.one(x)), times - 1) if times else x

    model = Twice()
    trace = tv.record(model, lambda: model(torch.ones(1)))
    assert paths(trace) == ["model", "model.one", "model.one"] * 2 + ["model"]
    assert trace.calls["depth"].tolist() == [0, 1, 1, 1, 2, 2, 2]


@both_taps
def test_tensors_of_every_kind(any_tap: str) -> None:  # noqa: F811
    class Marked(torch.Tensor):
        pass

    around: list[Any] = [torch.ones(2)]
    around.append(around)
    values: list[tuple[Any, list[tuple[tuple[int, ...], str, str]]]] = [
        (torch.ones(2, device="meta"), [((2,), "float32", "meta")]),
        (torch.ones(2, dtype=torch.complex64).conj(), [((2,), "complex64", "cpu")]),
        (torch.ones(2).to(torch.float8_e4m3fn), [((2,), "float8_e4m3fn", "cpu")]),
        (torch.ones(2, 2).to_sparse(), [((2, 2), "float32", "cpu")]),
        (torch.ones(3).as_subclass(Marked), [((3,), "float32", "cpu")]),
        (torch.ones(()), [((), "float32", "cpu")]),
        (torch.Size([1, 2]), []),
        (b"bytes", []),
        ({"b": torch.ones(1), 3: torch.ones(2), ("t",): None}, [((1,), "float32", "cpu"), ((2,), "float32", "cpu")]),
        (around, None),
    ]
    model = nn.Identity()
    for _ in range(3):  # seen before or not
        trace = tv.record(model, lambda: [model(value) for value, _ in values])
        for (value, expected), found in zip(values, trace.calls["inputs"], strict=True):
            if expected is None:
                assert found[0].shape == (2,)
            else:
                assert [(t.shape, t.dtype, t.device) for t in found] == expected, value


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_modes_around_a_run(around: Any) -> None:
    model, x = stack(), torch.ones(1, 4)
    with around():
        expected = model(x)
        with tv.recording(model) as rec:
            assert torch.equal(model(x), expected)
    assert paths(rec.trace) == BLOCKS
    assert rec.trace.calls["outputs"][2][0].dtype == str(expected.dtype).removeprefix("torch.")
