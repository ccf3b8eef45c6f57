"""What real models and programs do around a recording: it sees every call, and changes nothing."""

from __future__ import annotations

import _thread
import copy
import dis
import functools
import gc
import importlib.util
import itertools
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from taps import any_tap, both_taps  # noqa: F401
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import talkerviz as tv
from talkerviz.recorder import recorder
from talkerviz.recorder.phases import TalkerPhases

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
HERE = Path(tv.__file__).parent
DYNAMO = torch._dynamo.variables.nn_module
PLAIN_CALL = nn.Module.__call__


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Sequential(nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Model(nn.Module):
    def __init__(self, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.block = block()
        self.last = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(x))


BLOCK = [" block", "  block.first", "  block.second", "   block.second.0", "   block.second.1"]
CALLS = ["", *BLOCK, " last"]


def made(block: Callable[[], nn.Module] = Block) -> Model:
    torch.manual_seed(0)
    return Model(block)


def values(state: int = 1, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(state))


def standing() -> list[Any]:
    return [nn.Module.__call__, nn.Module._replicate_for_data_parallel, DYNAMO.unpatched_nn_module_call]


def state(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, by identity; of what holds hooks, parameters and children, all that it holds."""
    return {
        f"{path}.{name}": [(key, id(item)) for key, item in value.items()] if isinstance(value, dict) else id(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
    }


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = standing()
    assert before[0] is before[2] is PLAIN_CALL
    yield
    now = standing()
    nn.Module.__call__, nn.Module._replicate_for_data_parallel = before[:2]
    DYNAMO.unpatched_nn_module_call = before[2]
    assert now == before


class Row(NamedTuple):
    path: str
    parent: int | None
    depth: int
    thread: int
    start: int
    end: int
    error: str


def rows(trace: tv.Trace) -> list[Row]:
    """The calls. Parents stand one level up, begin before and end after, on the same thread."""
    calls = trace.calls
    path, depth, thread, start, own = (
        calls[name].tolist() for name in ("path", "depth", "thread", "host_start_ns", "host_self_ns")
    )
    parent = [None if number is pd.NA else number for number in calls["parent"].tolist()]
    end = [begin + took for begin, took in zip(start, calls["host_ns"].tolist(), strict=True)]
    error = calls["error"].fillna("").tolist()
    found = [Row(*row) for row in zip(path, parent, depth, thread, start, end, error, strict=True)]
    assert calls["call"].tolist() == list(range(len(found)))
    assert min(own, default=0) >= 0
    for number, row in enumerate(found):
        above = None if row.parent is None else found[row.parent]
        if above is None:
            assert row.depth == 0
        else:
            assert (row.depth, row.thread) == (above.depth + 1, above.thread)
            assert row.parent < number
            assert above.start <= row.start <= row.end <= above.end
    return found


def tree(trace: tv.Trace, thread: int | None = None) -> list[str]:
    """A line a call: a blank for each level, its path without the root's name, its error."""
    return [
        " " * row.depth + row.path.removeprefix("model").removeprefix(".") + (f" !{row.error}" if row.error else "")
        for row in rows(trace)
        if thread in (None, row.thread)
    ]


def shapes(tensors: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(tensor.name, tensor.shape) for tensor in tensors]


# ---- How modules are called.


class Tangle(nn.Module):
    """One module under two names, and itself inside itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = self.one

    def forward(self, x: torch.Tensor, level: int = 2) -> torch.Tensor:
        x = self.two(self.one(x))
        return self(x, level - 1) + self.one(x) if level else x


@both_taps
def test_several_times_under_two_names_and_inside_itself(any_tap: str) -> None:  # noqa: F811
    model, x = Tangle(), values()
    expected, before = model(x), state(model)
    with tv.recording(model) as rec:
        assert torch.equal(model(x), expected)
        model.two(x)
    assert state(model) == before
    inner = ["", " one", " one"]
    lines = [*inner, *(" " + line for line in inner), *("  " + line for line in inner), "  one", " one", "one"]
    assert tree(rec.trace) == lines
    assert {module.path: module.aliases for module in rec.trace.modules} == {"model": (), "model.one": ("model.two",)}


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for row in x:
            yield self.leaf(row)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(self.stream(x)))


@both_taps
def test_a_generator_s_calls_belong_to_who_runs_it(any_tap: str) -> None:  # noqa: F811
    model, x = Reader(), values()
    expected, before = model(x), state(model)
    with tv.recording(model) as rec:
        assert torch.equal(model(x), expected)
        loose = model.stream(x)
        first = next(loose)
        late = model.stream(x)
    assert torch.equal(torch.stack([first, *loose]), expected)
    assert torch.equal(torch.stack(list(late)), expected)
    assert state(model) == before
    leaf = " stream.leaf"
    assert tree(rec.trace) == ["", " stream", leaf, leaf, leaf, "stream", "stream.leaf", "stream"]
    assert shapes(rec.trace.calls["outputs"][1]) == []  # a generator holds no tensors yet


@both_taps
def test_threads_do_not_mix(any_tap: str) -> None:  # noqa: F811
    model, count, times = made(), 4, 40
    expected = [model(values(number, number + 1)) for number in range(count)]
    before, together, wrong = state(model), threading.Barrier(count), []

    def work(number: int) -> None:
        together.wait()
        for _ in range(times):
            if not torch.equal(model(values(number, number + 1)), expected[number]):
                wrong.append(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with tv.recording(model) as rec:
            threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert state(model) == before
    for thread in range(count):
        assert tree(rec.trace, thread) == CALLS * times
        of_thread = rec.trace.calls[rec.trace.calls["thread"] == thread]
        assert of_thread["inputs"].map(lambda tensors: tensors[0].shape).nunique() == 1


@both_taps
def test_threads_that_outlive_the_recording(any_tap: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(recorder, "_BATCH", 4)
    model, x = made(), values()
    for _ in range(8):
        stop, wrong = threading.Event(), []

        def work(stop: threading.Event = stop, wrong: list[BaseException] = wrong) -> None:
            try:
                while not stop.is_set():
                    model(x)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        try:
            with tv.recording(model) as rec:
                for thread in threads:
                    thread.start()
                time.sleep(0.003)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert wrong == []
        for thread in sorted(set(rec.trace.calls["thread"])):
            seen = [line.removesuffix(" !unfinished") for line in tree(rec.trace, thread)]
            assert seen == (CALLS * (len(seen) // len(CALLS) + 1))[: len(seen)]


def replicate(model: nn.Module) -> nn.Module:
    """As `torch.nn.parallel.replicate` wires one replica."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child] if child is not None else None)
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter.clone() if parameter is not None else None)
    return replicas[model]


@both_taps
def test_replicas_count_as_their_originals(any_tap: str) -> None:  # noqa: F811
    model = made()
    expected, before = [model(values(number)) for number in range(3)], state(model)
    found: dict[int, torch.Tensor] = {}
    with tv.recording(model) as rec:
        replicas = [replicate(model) for _ in range(3)]
        work = lambda number: found.setdefault(number, replicas[number](values(number)))  # noqa: E731
        for number in range(3):
            thread = threading.Thread(target=work, args=(number,))
            thread.start()
            thread.join()
    assert all(torch.equal(found[number], expected[number]) for number in range(3))
    assert state(model) == before
    assert [tree(rec.trace, thread) for thread in range(3)] == [CALLS] * 3


@both_taps
def test_replicas_are_let_go(any_tap: str) -> None:  # noqa: F811
    """Each forward pass of DataParallel makes its own, with copies of all weights."""
    model, x = made(), values()
    with tv.recording(model) as rec:
        for _ in range(3):
            replica = replicate(model)
            weight = weakref.ref(replica.block.first.weight)
            replica(x)
            del replica
            gc.collect()
            assert weight() is None
        assert all(torch.equal(copy.deepcopy(model)(x), model(x)) for _ in range(3))
    assert tree(rec.trace) == CALLS * 6


@both_taps
def test_a_copy_made_inside_is_another_model(any_tap: str) -> None:  # noqa: F811
    model, x = made(), values()
    expected, before = model(x), state(model)
    with tv.recording(model) as rec:
        model(x)
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.block.first.weight.mul_(2)
        of_other = other(x)
        assert torch.equal(model(x), expected)
    assert state(model) == before
    assert tree(rec.trace) == CALLS * 2
    assert not torch.equal(of_other, expected)
    assert torch.equal(of_other, other(x))
    assert state(other).keys() == state(model).keys()


class Checkpointed(Model):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(checkpoint(self.block, x, use_reentrant=self.use_reentrant))


@both_taps
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_and_backward(any_tap: str, use_reentrant: bool) -> None:  # noqa: F811
    torch.manual_seed(0)
    model = Checkpointed(use_reentrant)

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        x = values().requires_grad_()
        model(x).sum().backward()
        return [x.grad, *(parameter.grad for parameter in model.parameters())]

    expected, before = run(), state(model)
    with tv.recording(model) as rec:
        found = run()
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    assert state(model) == before
    assert tree(rec.trace) == CALLS + [line[1:] for line in BLOCK]


def test_hooks_by_which_data_and_weights_are_spread(tmp_path: Path) -> None:
    """DistributedDataParallel, and fully_shard, which makes a class of its own of each module's."""
    if not dist.is_available() or importlib.util.find_spec("torch.distributed.fsdp") is None:
        pytest.skip("torch without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        plain, x = made(), values()
        spread = nn.parallel.DistributedDataParallel(made())
        sharded = made()
        for module in (sharded.block, sharded):
            fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        plain(x).sum().backward()
        for model, prefix in ((spread, "module."), (sharded, "")):
            with tv.recording(model) as rec:
                out = model(x)
                out.sum().backward()
            assert torch.equal(out, plain(x))
            gradient = next(parameter.grad for parameter in model.parameters())
            gradient = gradient.full_tensor() if prefix == "" else gradient
            assert torch.equal(gradient, plain.block.first.weight.grad)
            paths = ["model", "model.module"] if prefix else ["model"]
            paths += [f"model.{prefix}{line.strip()}" for line in CALLS[1:]]
            assert [row.path for row in rows(rec.trace)] == paths
    finally:
        dist.destroy_process_group()


def test_accelerate_s_hooks() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model, x = made(), values()
    expected = model(x)
    hooks.add_hook_to_module(model.block, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
    before = state(model)
    with tv.recording(model) as rec:
        assert torch.equal(model(x), expected)
    assert state(model) == before
    assert tree(rec.trace) == CALLS


# ---- Compilers.


class Broken(Block):
    """Cannot be one graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


class Compiler:
    """A backend that counts graphs, and leaves them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def wrapped(model: Model, backend: Any) -> None:
    model.block = torch.compile(model.block, backend=backend)


def in_place(model: Model, backend: Any) -> None:
    model.block.compile(backend=backend)


def by_forward(model: Model, backend: Any) -> None:
    model.block.forward = torch.compile(model.block.forward, backend=backend)


def whole(model: Model, backend: Any) -> None:
    model.compile(backend=backend)


def compile_and_run(
    way: Callable[[Model, Any], None], block: type[Block], when: str, recorded: bool
) -> tuple[list[torch.Tensor], list[Any], tv.Trace | None]:
    """Outputs, what Dynamo had to do, and the trace; compiled and run before a recording, only made, or all inside."""
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


@both_taps
@pytest.mark.parametrize("block", [Block, Broken])
@pytest.mark.parametrize("way", [wrapped, in_place, by_forward, whole])
def test_a_compiled_region(any_tap: str, way: Any, block: type[Block]) -> None:  # noqa: F811
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


@both_taps
def test_a_phase_rule_of_one_s_own_is_not_compiled(any_tap: str) -> None:  # noqa: F811
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


@both_taps
def test_scripted_and_traced_modules_are_one_call(any_tap: str) -> None:  # noqa: F811
    x = values()
    for how in (torch.jit.script, lambda module: torch.jit.trace(module, x)):
        model = made()
        model.block = how(model.block)
        expected, before = model(x), state(model)
        with tv.recording(model) as rec:
            assert torch.equal(model(x), expected)
        assert state(model) == before
        assert tree(rec.trace) == ["", " block", " last"]
        assert rec.trace.facts["one_call"] == {"model.block": "scripted"}


@both_taps
def test_torch_s_own_tracers_make_the_same_of_a_watched_model(any_tap: str) -> None:  # noqa: F811
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


@both_taps
def test_functional_transforms(any_tap: str) -> None:  # noqa: F811
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


# ---- What others have put on the model.


@both_taps
def test_replaced_forwards_and_hooks_of_all_kinds(any_tap: str) -> None:  # noqa: F811
    model, x = made(), values()
    said: list[str] = []
    own = model.block.forward
    model.block.forward = lambda x, scale: own(x) * scale  # as accelerate does
    model.block.register_forward_pre_hook(
        lambda module, args, kwargs: (said.append(f"before {sorted(kwargs)}"), (args, {"scale": 3.0}))[1],
        with_kwargs=True,
    )
    model.block.register_forward_hook(
        lambda module, args, kwargs, output: (said.append(f"after {kwargs}"), output[:2])[1], with_kwargs=True
    )
    model.last.register_full_backward_hook(lambda *args: said.append("back"))
    anywhere = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: said.append(type(module).__name__)
    )
    try:
        expected, before, once = model(x), state(model), list(said)
        said.clear()
        with tv.recording(model) as rec:
            assert torch.equal(model(x), expected)
        assert said == once
        assert state(model) == before
    finally:
        anywhere.remove()
    assert tree(rec.trace) == CALLS
    block = rec.trace.calls.iloc[1]
    assert shapes(block["inputs"]) == [("0", (3, 4))]  # as the caller gave them
    assert shapes(block["outputs"]) == [("output", (2, 4))]  # as the caller got it


@both_taps
def test_a_call_of_one_s_own(any_tap: str) -> None:  # noqa: F811
    class Wrapping(nn.Linear):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) + 1

    model, x = nn.Sequential(Wrapping(4, 4)), values()
    expected = model(x)
    with tv.recording(model) as rec:
        assert torch.equal(model(x), expected)
        assert torch.equal(nn.Module.__call__(model, x), expected)
    assert tree(rec.trace) == ["", " 0"] * 2


@both_taps
def test_modules_that_do_not_know_their_size_yet(any_tap: str) -> None:  # noqa: F811
    model, x = nn.Sequential(nn.LazyLinear(2), nn.ReLU()), values()
    with tv.recording(model) as rec:
        found = model(x)
    assert torch.equal(found, model(x))
    assert tree(rec.trace) == ["", " 0", " 1"]
    assert [module.parameters for module in rec.trace.modules] == [0, 0, 0]


# ---- Several recordings.


@both_taps
def test_recordings_inside_one_another(any_tap: str) -> None:  # noqa: F811
    model, other, x = made(), made(), values()
    expected, before = model(x), [state(model), state(other)]
    with tv.recording(model) as outer:
        model(x)
        with tv.recording(model) as same, tv.recording(model.block, "model") as part, tv.recording(other) as apart:
            assert torch.equal(model(x), expected)
            assert torch.equal(other(x), expected)
        model(x)
    assert [state(model), state(other)] == before
    assert tree(outer.trace) == CALLS * 3
    assert tree(same.trace) == CALLS
    assert tree(part.trace) == [line[1:].removeprefix("block").replace("block.", "") for line in BLOCK]
    assert tree(apart.trace) == CALLS


@both_taps
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_recordings_end_in_any_order(any_tap: str, order: tuple[int, ...]) -> None:  # noqa: F811
    model, x = made(), values()
    expected, before = model(x), state(model)
    stacks = [ExitStack() for _ in range(3)]
    recs = [stack.enter_context(tv.recording(model)) for stack in stacks]
    for number in order:
        assert torch.equal(model(x), expected)
        stacks[number].close()
    assert torch.equal(model(x), expected)
    assert state(model) == before
    assert [len(recs[number].trace.calls) // len(CALLS) for number in order] == [1, 2, 3]
    assert all(tree(recs[number].trace) == CALLS * times for times, number in enumerate(order, 1))
    # Nor is anything kept for longer than someone wants it.
    alive = weakref.ref(model)
    del model, stacks, recs
    gc.collect()
    assert alive() is None


@both_taps
def test_recordings_side_by_side(any_tap: str) -> None:  # noqa: F811
    models, x = [made(), made()], values()
    expected, together = models[0](x), threading.Barrier(2)
    seen: list[bool] = []

    def work(model: nn.Module) -> None:
        together.wait()
        for times in range(1, 12):
            with tv.recording(model) as rec:
                found = [model(x) for _ in range(times)]
            seen.append(all(torch.equal(one, expected) for one in found) and tree(rec.trace) == CALLS * times)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 22


# ---- What goes wrong.


class Failing(Block):
    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.error is not None:
            raise self.error
        return self.second(x)


@both_taps
@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("no memory"), StopIteration(), GeneratorExit(), KeyboardInterrupt()]
)
def test_what_is_raised_passes_through(any_tap: str, error: BaseException) -> None:  # noqa: F811
    model, x = made(Failing), values()
    expected, before = model(x), state(model)
    with tv.recording(model) as rec:
        model.block.error = error
        with pytest.raises(type(error)) as raised:
            model(x)
        model.block.error = None
        assert raised.value is error
        assert torch.equal(model(x), expected)
    assert state(model).keys() == before.keys()
    name = type(error).__name__
    assert tree(rec.trace) == [f" !{name}", f" block !{name}", "  block.first", *CALLS]


@functools.cache
def moments(code: CodeType) -> frozenset[int]:
    """Where in a function Ctrl-C can come: as it begins, and after each call."""
    found, before = set(), "RESUME"
    for instruction in dis.get_instructions(code):
        if before == "RESUME" or before.startswith("CALL"):
            found.add(instruction.offset)
        before = instruction.opname
    return frozenset(found)


class Interrupt:
    """Ctrl-C at the n-th moment that the recorder's own Python code is at."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self.enter)

    def __exit__(self, *args: object) -> None:
        sys.settrace(self.before)

    def enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(str(HERE)):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.step

    def step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and frame.f_lasti in moments(frame.f_code):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.step


class Noticing(nn.Module):
    """Knows how many of its calls were stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Sequential(nn.Identity())
        self.stopped = 0

    def forward(self, x: torch.Tensor, other: Any = None) -> torch.Tensor:
        try:
            return self.second(self.first(x))
        except KeyboardInterrupt:
            self.stopped += 1
            raise


def interrupted(trace: tv.Trace, model: Noticing, lossless: bool = True) -> None:
    """The trace is whole but for what Ctrl-C cut short, and says what that was."""
    found = rows(trace)
    for row in found:
        above = None if row.parent is None else found[row.parent]
        assert row.error in ("", "KeyboardInterrupt")
        assert above is None or above.path == row.path.rpartition(".")[0]
        if lossless:
            assert above is not None or row.path == "model"
            assert not row.error or above is None or above.error == row.error
    if lossless:
        failed = sum(row.error != "" for row in found if row.path == "model")
        assert model.stopped <= failed <= model.stopped + 1  # or as the call was being noted


@both_taps
@pytest.mark.parametrize("batch", [4, 1 << 15])
def test_ctrl_c_at_each_moment_of_a_call(
    any_tap: str,  # noqa: F811
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "_BATCH", batch)
    before = standing()
    for number in itertools.count(1, 5 if any_tap == "python" else 3):
        model, interrupt, stopped = Noticing(), Interrupt(number), False
        with tv.recording(model) as rec:
            model(torch.zeros(1))
            try:
                with interrupt:
                    for rows in (1, 2):
                        model(torch.zeros(rows), other=[torch.zeros(1), None])
            except KeyboardInterrupt:
                stopped = True
            model(torch.zeros(9))
        assert stopped == (interrupt.left <= 0)
        assert standing() == before
        # Of a batch that was being written, nothing may be left.
        interrupted(rec.trace, model, lossless=batch > 4)
        if interrupt.left > 0:
            break
    assert number > 100


@both_taps
def test_ctrl_c_as_a_recording_begins_or_ends(any_tap: str) -> None:  # noqa: F811
    before = standing()
    for number in itertools.count(1, 2):
        model, interrupt, stopped = nn.ReLU(), Interrupt(number), False
        try:
            with interrupt, tv.recording(model, clock="none"):
                model(torch.zeros(1))
        except KeyboardInterrupt:
            stopped = True
        assert standing() == before
        assert stopped == (interrupt.left <= 0)
        if interrupt.left > 0:
            break
    assert number > 100


@both_taps
def test_ctrl_c_at_random(any_tap: str) -> None:  # noqa: F811
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")
    rng, x, before = random.Random(0), torch.zeros(2), standing()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    gc.disable()  # where a signal would be swallowed
    try:
        for times in range(40):
            model = Noticing()
            with tv.recording(model) as rec, pytest.raises(KeyboardInterrupt):  # noqa: PT012
                if times % 8:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 4e-3))
                else:
                    threading.Timer(rng.uniform(1e-4, 4e-3), _thread.interrupt_main).start()
                until = time.monotonic() + 10
                while time.monotonic() < until:
                    model(x)
            assert standing() == before
            interrupted(rec.trace, model)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        gc.enable()


# ---- What modules take and give.


class Giving(nn.Module):
    """Gives what it is told to, whatever it takes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


class Budget:
    """Fails what takes too long, instead of hanging."""

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGALRM, self.stop)
        signal.setitimer(signal.ITIMER_REAL, 5)

    def __exit__(self, *args: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)

    def stop(self, *args: object) -> None:
        raise TimeoutError


def given(value: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Inputs and outputs as they are recorded, twice the same."""
    model = Giving()
    model.value = value
    with Budget():
        trace = tv.record(model, lambda: [model(*args, **kwargs) for _ in range(2)])
    inputs, outputs = trace.calls["inputs"], trace.calls["outputs"]
    assert inputs[0] == inputs[1]
    assert outputs[0] == outputs[1]
    return inputs[0], outputs[0]


@both_taps
def test_containers_that_are_huge_or_contain_themselves(any_tap: str) -> None:  # noqa: F811
    one = torch.zeros(1)
    narrow: list[Any] = [one]
    narrow.append(narrow)
    assert shapes(given(narrow)[1])[0] == ("0", (1,))
    wide: list[Any] = [one]
    wide += [wide] * 20
    assert shapes(given(wide)[1])[0] == ("0", (1,))
    named: dict[str, Any] = {"here": one}
    named |= dict.fromkeys("abcdefghij", named)
    assert shapes(given(named)[1])[0] == ("here", (1,))
    assert len(given([one] * 3000)[1]) == 3000
    assert given([0] * 100_000 + [{"a": one}])[1][0].name == "100000.a"
    deep: Any = one
    for _ in range(5000):
        deep = [deep]
    assert given(deep)[1] == ()


@both_taps
def test_tensors_of_all_kinds(any_tap: str) -> None:  # noqa: F811
    class Own(torch.Tensor):
        pass

    ones, places = torch.ones(2, 2), torch.tensor([[0, 1], [1, 0]])
    kinds: list[tuple[torch.Tensor, tuple[int, ...], str, str]] = [
        (ones.as_subclass(Own), (2, 2), "float32", "cpu"),
        (nn.Parameter(ones), (2, 2), "float32", "cpu"),
        (torch.sparse_coo_tensor(places, torch.ones(2), (2, 2)), (2, 2), "float32", "cpu"),
        (ones.to_sparse_csr(), (2, 2), "float32", "cpu"),
        (torch.quantize_per_tensor(ones, 0.1, 0, torch.quint8), (2, 2), "quint8", "cpu"),
        (ones.to(torch.complex64).conj(), (2, 2), "complex64", "cpu"),
        (ones.to(torch.complex64).conj().imag, (2, 2), "float32", "cpu"),
        (ones.to(torch.float8_e4m3fn), (2, 2), "float8_e4m3fn", "cpu"),
        (ones.to(torch.uint16), (2, 2), "uint16", "cpu"),
        (ones.to("meta"), (2, 2), "float32", "meta"),
        (ones.expand(0, 2, 2).transpose(0, 2), (2, 2, 0), "float32", "cpu"),
        (torch.ones(()), (), "float32", "cpu"),
    ]
    for tensor, shape, dtype, device in kinds:
        for found, name in zip(given(tensor, tensor), ("0", "output"), strict=True):
            assert found == ((name, shape, dtype, device),)


@both_taps
def test_tensors_whose_sizes_are_not_numbers(any_tap: str) -> None:  # noqa: F811
    """They are recorded with what can be said of them, and do not stop the run."""
    rows = [torch.zeros(2, 4), torch.zeros(3, 4)]
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(rows, layout=layout)
        for found in given(nested, nested):
            assert len(found) == 1
            assert found[0].dtype == "float32"
            assert -1 in found[0].shape
    assert [tensor.device for tensor in given(nn.UninitializedParameter())[1]] == ["cpu"]


@both_taps
def test_names_of_nested_tensors(any_tap: str) -> None:  # noqa: F811
    class SmallCache:
        __slots__ = ("tensor",)

    one, two, three = (torch.zeros(size) for size in (1, 2, 3))
    small = SmallCache()
    small.tensor = one
    odd = {1: one, (2, 3): two, None: three, "1": two}
    assert shapes(given(odd)[1]) == [("1", (1,)), ("(2, 3)", (2,)), ("None", (3,)), ("1", (2,))]
    assert shapes(given(None, three, z=one, a=two)[0]) == [("0", (3,)), ("z", (1,)), ("a", (2,))]
    assert shapes(given(None, a=two, z=one)[0]) == [("a", (2,)), ("z", (1,))]
    assert shapes(given(None, **{"out put": one})[0]) == [("out put", (1,))]
    assert shapes(given([small, one])[1]) == [("1", (1,))]


# ---- Choosing.


@both_taps
def test_parents_are_the_nearest_recorded(any_tap: str) -> None:  # noqa: F811
    model, x = made(), values()
    expected = model(x)
    chosen: list[tuple[dict[str, Any], list[str]]] = [
        ({"include": ["model", "*.second.*"]}, ["", " block.second.0", " block.second.1"]),
        ({"include": ["*.block*"]}, [line[1:] for line in BLOCK]),
        ({"exclude": ["model", "*.second"]}, ["block", " block.first", " block.second.0", " block.second.1", "last"]),
        ({"depth": 1}, ["", " block", " last"]),
        ({"depth": 2, "include": ["*.second*", "model"], "exclude": ["*.0"]}, ["", " block.second"]),
    ]
    for options, lines in chosen:
        with tv.recording(model, **options) as rec:
            assert torch.equal(model(x), expected)
        assert tree(rec.trace) == lines
        assert len(rec.trace.modules) == len(CALLS)
    for options in ({"include": ["*.first", "*.third"]}, {"exclude": ["*.third"]}):
        with pytest.raises(ValueError, match=r"no module fits '\*\.third'"), tv.recording(model, **options):
            pytest.fail("the run must not begin")
    with pytest.raises(ValueError, match="no module is left"), tv.recording(model, exclude=["*"]):
        pytest.fail("the run must not begin")


@both_taps
def test_phases_without_their_landmarks_calls(any_tap: str) -> None:  # noqa: F811
    model = made()
    model.code_predictor = nn.Identity()
    two, one = (torch.zeros(1, positions, 4) for positions in (2, 1))

    def run() -> None:
        for _ in range(2):
            model(two)
            for given in (two, one, one):
                model.code_predictor(given, inputs_embeds=given)
                model.last(given)

    model.code_predictor.forward = lambda x, inputs_embeds: x
    columns = ["path", "phase", "frame", "step"]
    whole_trace = tv.record(model, run, phases=TalkerPhases).calls
    part = tv.record(model, run, phases=TalkerPhases, exclude=["model", "*.code_predictor"]).calls
    left = whole_trace[~whole_trace["path"].isin(["model", "model.code_predictor"])]
    assert part[columns].astype(object).values.tolist() == left[columns].astype(object).values.tolist()
    assert part["phase"].unique().tolist() == ["prefill", "predictor.prefill", "predictor.decode", "decode"]


# ---- What is going on around.


class Listening(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.heard.append(str(func))
        return func(*args, **(kwargs or {}))


@both_taps
def test_modes_around(any_tap: str) -> None:  # noqa: F811
    model, x = made(), values()
    for around in (torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16), torch.device):
        with around("cpu") if around is torch.device else around():
            expected = model(x)
            with tv.recording(model) as rec:
                found = model(x)
        assert torch.equal(found, expected)
        assert found.is_inference() == expected.is_inference()
        assert tree(rec.trace) == CALLS
        assert rec.trace.calls["outputs"][2][0].dtype == str(expected.dtype).removeprefix("torch.")
    with torch.device("meta"):
        on_meta = made()
        calls = tv.record(on_meta, lambda: on_meta(torch.empty(3, 4))).calls
    assert {tensor.device for tensors in calls["outputs"] for tensor in tensors} == {"meta"}


@both_taps
def test_dispatch_modes_see_the_model_alone(any_tap: str) -> None:  # noqa: F811
    model, x = made(), values()

    def heard(recorded: bool, outside: bool) -> tuple[list[str], Any]:
        listening, flops = Listening(), FlopCounterMode(display=False)
        with ExitStack() as stack:
            if recorded and outside:
                stack.enter_context(tv.recording(model))
            stack.enter_context(listening)
            stack.enter_context(flops)
            if recorded and not outside:
                stack.enter_context(tv.recording(model))
            model(x)
        return listening.heard, flops.flop_counts

    plain = heard(recorded=False, outside=False)
    assert len(plain[0]) > 3
    assert heard(recorded=True, outside=True) == plain
    assert heard(recorded=True, outside=False) == plain


@both_taps
@pytest.mark.parametrize("leaves", [False, True], ids=["the child exits inside", "the child leaves the recording"])
@pytest.mark.parametrize("to_file", [False, True])
def test_a_fork_inside(
    any_tap: str,  # noqa: F811
    leaves: bool,
    to_file: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "_BATCH", 8)
    model, x, parent = Noticing(), torch.zeros(1), os.getpid()
    lines = ["", " first", " second", "  second.0"]
    file = tmp_path / "run.parquet" if to_file else None
    try:
        with tv.recording(model, file=file) as rec:
            for _ in range(5):
                model(x)
            if (child := os.fork()) == 0:
                for _ in range(20):
                    model(x)
                if not leaves:
                    os._exit(0)
            else:
                assert os.waitpid(child, 0)[1] == 0
                for _ in range(5):
                    model(x)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert tree(rec.trace) == lines * 10
    assert sorted(path.name for path in tmp_path.iterdir()) == (["run.parquet"] if to_file else [])


@pytest.mark.parametrize("measure", ["cost", "flow"])
def test_what_watches_operators_leaves_compiled_code_compiled(measure: str) -> None:
    block = nn.Sequential(nn.ReLU(), nn.Tanh())
    model = nn.Sequential(torch.compile(block, backend="eager"), nn.ReLU())
    run = torch.no_grad()(lambda: model(torch.ones(2)))
    for _ in range(2):
        # Inside a compiled block there are no calls.
        assert tv.record(model, run).calls["path"].tolist() == ["model", "model.0", "model.1"]
        tv.record(model, run, measure=measure)
