"""Ways in which programs call modules, and other tools' hooks on them."""

from __future__ import annotations

import copy
import gc
import importlib.util
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_model import BLOCK, CALLS, Model, made, rows, shapes, state, tree, values
from taps import every_way
from thread_race import race
from torch import nn
from torch.utils.checkpoint import checkpoint

import talkerviz as tv
from talkerviz.recorder import recording as recorder

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


class Tangle(nn.Module):
    """One module under two names, and itself inside itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = self.one

    def forward(self, x: torch.Tensor, level: int = 2) -> torch.Tensor:
        x = self.two(self.one(x))
        return self(x, level - 1) + self.one(x) if level else x


@every_way
def test_several_times_under_two_names_and_inside_itself(any_tap: str) -> None:
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


@every_way
def test_a_generator_s_calls_belong_to_who_runs_it(any_tap: str) -> None:
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


@every_way
def test_threads_do_not_mix(any_tap: str) -> None:
    model, count, times = made(), 4, 40
    expected = [model(values(number, number + 1)) for number in range(count)]
    before, together, wrong = state(model), threading.Barrier(count), []

    def work(number: int) -> None:
        together.wait()
        for _ in range(times):
            if not torch.equal(model(values(number, number + 1)), expected[number]):
                wrong.append(number)

    with tv.recording(model) as rec:
        race(work, range(count))
    assert wrong == []
    assert state(model) == before
    for thread in range(1, count + 1):
        assert tree(rec.trace, thread) == CALLS * times
        of_thread = rec.trace.calls[rec.trace.calls["thread"] == thread]
        assert of_thread["inputs"].map(lambda tensors: tensors[0].shape).nunique() == 1


@every_way
def test_threads_that_outlive_the_recording(any_tap: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


@every_way
def test_replicas_count_as_their_originals(any_tap: str) -> None:
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
    assert [tree(rec.trace, thread) for thread in (1, 2, 3)] == [CALLS] * 3


@every_way
def test_replicas_are_let_go(any_tap: str) -> None:
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


@every_way
def test_a_copy_made_inside_is_another_model(any_tap: str) -> None:
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


@every_way
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_and_backward(any_tap: str, use_reentrant: bool) -> None:
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


@every_way
def test_replaced_forwards_and_hooks_of_all_kinds(any_tap: str) -> None:
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


@every_way
def test_a_call_of_one_s_own(any_tap: str) -> None:
    class Wrapping(nn.Linear):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs) + 1

    model, x = nn.Sequential(Wrapping(4, 4)), values()
    expected = model(x)
    with tv.recording(model) as rec:
        assert torch.equal(model(x), expected)
        assert torch.equal(nn.Module.__call__(model, x), expected)
    assert tree(rec.trace) == ["", " 0"] * 2


@every_way
def test_modules_that_do_not_know_their_size_yet(any_tap: str) -> None:
    model, x = nn.Sequential(nn.LazyLinear(2), nn.ReLU()), values()
    with tv.recording(model) as rec:
        found = model(x)
    assert torch.equal(found, model(x))
    assert tree(rec.trace) == ["", " 0", " 1"]
    assert [module.parameters for module in rec.trace.modules] == [10, 10, 0]  # of a module and all in it
    assert rec.trace.calls["class"].tolist() == ["Sequential", "Linear", "ReLU"]
