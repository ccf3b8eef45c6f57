"""Accuracy of recordings: the same calls by hooks and tap, without the time of the recorder or of collections."""

from __future__ import annotations

import asyncio
import collections
import gc
import shutil
import threading
import time
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from taps import every_way, tap_alone
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import talkerviz as tv
from talkerviz.recorder import tap

WHAT_RAN = ["path", "class", "parent", "depth", "thread", "phase", "frame", "step", "run", "inputs", "outputs", "error"]


def llama(layers: int = 3) -> tuple[nn.Module, Any]:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2, vocab_size=100
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.arange(7)[None]
    return model, lambda: model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)


def gpt2() -> tuple[nn.Module, Any]:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100)).eval()
    return model, lambda: model(torch.arange(6)[None], output_hidden_states=True)


def t5() -> tuple[nn.Module, Any]:
    config = T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=100, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    return model, lambda: model.generate(torch.arange(6)[None], max_new_tokens=4, min_new_tokens=4)


@pytest.mark.parametrize("made", [llama, gpt2, t5])
def test_hooks_and_the_tap_see_the_same(made: Any) -> None:
    torch.manual_seed(0)
    model, run = made()
    seen = [tv.record(model, run, via=via).calls[WHAT_RAN].astype(object) for via in ("tap", "hooks")]
    assert len(seen[0]) > 20
    pd.testing.assert_frame_equal(*seen)


def test_hooks_are_gone_afterwards_also_when_the_run_raises() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def hooks() -> list[int]:
        return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]

    with pytest.raises(ZeroDivisionError), tv.recording(model, via="hooks") as rec:  # noqa: PT012
        assert hooks() == [2, 2, 2]
        model(torch.zeros(1, 2))
        raise ZeroDivisionError
    assert hooks() == [0, 0, 0]
    assert rec.trace.facts["via"] == "hooks"
    assert len(rec.trace.calls) == 3


def test_a_way_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ReLU()
    with pytest.raises(ValueError, match="unknown via 'magic': choose from auto, tap, hooks"):
        tv.record(model, lambda: None, via="magic")
    monkeypatch.setattr(tap, "Tap", None)
    tap._warn_of_slow_hooks.cache_clear()
    with pytest.raises(ValueError, match="via 'tap': it is not built here"):
        tv.record(model, lambda: None, via="tap")
    with pytest.warns(RuntimeWarning, match="forward hooks, 10 to 25 µs a call"):
        trace = tv.record(model, lambda: model(torch.zeros(1)))
    assert trace.facts["via"] == "hooks"
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        tv.record(model, lambda: model(torch.zeros(1)))
    tap._warn_of_slow_hooks.cache_clear()


def test_shares_are_those_of_plain_hooks() -> None:
    """Of the time of a language model, whose layers are all handed the whole cache."""
    torch.manual_seed(0)
    model, _ = llama(layers=32)
    ids = torch.arange(12)[None]

    def run() -> None:
        model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)

    names = {id(part): type(part).__name__ for part in model.modules()}
    run()
    # The machine is shared, so one of several tries is enough; what is booked wrongly is wrong in all of them.
    tries = (_largest_difference(model, names, run) for _ in range(6))
    assert any(difference < 0.05 for difference in tries)


def _largest_difference(model: nn.Module, names: dict[int, str], run: Callable[[], None]) -> float:
    """By how much a class's share of all self time differs from what plain hooks say, at most."""
    own: dict[str, list[int]] = collections.defaultdict(list)
    stack: list[list[int]] = []

    def before(module: nn.Module, args: Any) -> None:
        stack.append([time.perf_counter_ns(), 0])

    def after(module: nn.Module, args: Any, output: Any) -> None:
        began, inside = stack.pop()
        took = time.perf_counter_ns() - began
        own[names[id(module)]].append(took - inside)
        if stack:
            stack[-1][1] += took

    handles = [
        h for m in model.modules() for h in (m.register_forward_pre_hook(before), m.register_forward_hook(after))
    ]
    run()
    for handle in handles:
        handle.remove()
    trace = tv.record(model, run)
    # Medians, as calls in which the machine did something else say nothing.
    ours = trace.calls.groupby("class", observed=True)["host_self_ns"].agg(lambda ns: ns.median() * len(ns))
    theirs = pd.Series({name: np.median(ns) * len(ns) for name, ns in own.items()})
    difference: float = (ours / ours.sum() - theirs / theirs.sum()).abs().max()
    return difference


class Slow(dict):
    """An argument that takes long to describe: many entries of a type that Python is asked about."""

    def __init__(self, entries: int) -> None:
        super().__init__({str(n): torch.zeros(1).as_subclass(Other) for n in range(entries)})


class Other(torch.Tensor):
    pass


@every_way
def test_what_the_recorder_takes_is_in_nobody_s_time(any_tap: str) -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor, other: Any) -> torch.Tensor:
            return x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor, other: Any) -> torch.Tensor:
            for _ in range(50):
                x = self.inner(x, other)
            return x

    model, x, slow = Outer(), torch.zeros(1), Slow(250)
    began = time.perf_counter_ns()
    with tv.recording(model) as rec:
        model(x, slow)
    took = time.perf_counter_ns() - began
    calls = rec.trace.calls
    assert len(calls) == 51
    # To describe 50 times 250 tensors takes many milliseconds; the calls themselves take microseconds.
    assert took > 15_000_000
    assert calls["host_ns"][0] < 0.2 * took
    assert calls["host_self_ns"].sum() < 0.2 * took


@every_way
def test_garbage_collections_are_in_no_module_s_self_time(any_tap: str) -> None:
    class Collects(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gc.collect()
            return x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Collects()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(self.inner(x))

    model = Outer()
    trace = tv.record(model, lambda: model(torch.zeros(1)))
    full = trace.collections[trace.collections["generation"] == 2]
    assert full["call"].tolist() == [1, 2]
    for row in full.itertuples():
        call = trace.calls.iloc[row.call]
        assert call["host_start_ns"] <= row.host_start_ns
        assert row.host_ns <= call["host_ns"]
        assert call["host_self_ns"] <= call["host_ns"] - row.host_ns
    table = trace.table("class").set_index("class")
    assert table.loc["garbage collection", "calls"] >= 2
    assert table["share"].sum() == pytest.approx(1)
    assert "garbage collector ran" in trace.render("markdown", by="class")


@every_way
def test_a_collection_in_an_unfinished_call_is_no_negative_time(any_tap: str) -> None:
    collected, stop = threading.Event(), threading.Event()

    class Collects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inner(x)
            gc.collect()
            collected.set()
            stop.wait()
            return x

    model = Collects()
    thread = threading.Thread(target=model, args=(torch.ones(1),))
    with tv.recording(model) as rec:
        thread.start()
        collected.wait()
    stop.set()
    thread.join()
    calls, garbage = rec.trace.calls, rec.trace.collections
    outer = calls.loc[calls["path"] == "model"].iloc[0]
    assert outer["error"] == "unfinished"
    assert 0 <= outer["host_self_ns"] <= outer["host_ns"] - garbage["host_ns"].max()


def test_modules_that_join_are_replaced_or_are_nobody_s() -> None:
    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net: nn.Module | None = None
            self.hidden = [nn.ReLU()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.net is None:
                self.net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
            return self.hidden[0](self.net(x))

    for via in ("tap", "hooks"):
        model, x = Joins(), torch.zeros(1, 3)
        with tv.recording(model, via=via) as rec:
            model(x)
            model.net[0] = nn.Linear(3, 4)
            model(x)
        paths = ["model", "model.net", "model.net.0", "model.net.1"]
        assert rec.trace.calls["path"].tolist() == paths * 2
        assert rec.trace.facts["joined_modules"] == 4
        assert [info.path for info in rec.trace.modules] == [*paths, "model.net.0"]
        if via == "tap":
            assert rec.trace.facts["strange_calls"] == {"calls": 2, "classes": ["ReLU"]}
            assert "2 calls of modules that the model does not hold (ReLU)" in rec.trace.render("markdown")


def test_a_thread_of_a_server_records_its_own_request() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    started = threading.Barrier(3)

    def serve(rows: int) -> None:
        started.wait(30)
        for _ in range(200):
            model(torch.zeros(rows, 4))

    def traced(rows: int) -> tv.Trace:
        with tv.recording(model) as rec:
            serve(rows)
        return rec.trace

    with ThreadPoolExecutor(3) as pool:
        [*map(pool.submit, [time.sleep] * 3, [0.01] * 3)]  # its threads are there
        jobs = [pool.submit(traced, 1), pool.submit(traced, 2), pool.submit(serve, 3)]
        traces = [job.result() for job in jobs[:2]]
    for rows, trace in enumerate(traces, 1):
        assert len(trace.calls) == 600
        assert {tensors[0].shape[0] for tensors in trace.calls["inputs"]} == {rows}


def test_phases_of_tasks_do_not_mix() -> None:
    model = nn.Linear(2, 2)

    async def request(rec: tv.Recording, rows: int) -> None:
        with rec.phase(f"request {rows}"):
            for _ in range(5):
                model(torch.zeros(rows, 2))
                await asyncio.sleep(0)

    async def serve(rec: tv.Recording) -> None:
        await asyncio.gather(*(request(rec, rows) for rows in (1, 2, 3)))

    with tv.recording(model) as rec:
        asyncio.run(serve(rec))
    for phase, tensors in zip(rec.trace.calls["phase"], rec.trace.calls["inputs"], strict=True):
        assert phase == f"request {tensors[0].shape[0]}"


def test_a_run_that_goes_elsewhere_and_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    model = nn.ReLU()
    with pytest.raises(KeyError, match="mine"), tv.recording(model, file="run.parquet") as rec:  # noqa: PT012
        model(torch.zeros(1))
        monkeypatch.chdir(tmp_path / "sub")
        raise KeyError("mine")
    assert len(rec.trace.calls) == 1
    assert (tmp_path / "run.parquet").exists()
    gone = tmp_path / "gone"
    gone.mkdir()
    lost = pytest.warns(RuntimeWarning, match="No such file or directory; there is no trace")
    with lost, tv.recording(model, file=gone / "run.parquet") as rec:
        model(torch.zeros(1))
        shutil.rmtree(gone)
    assert rec.lost is not None


@pytest.mark.parametrize("met_before", [False, True])
@tap_alone
def test_what_is_compiled_of_a_model_is_recorded_as_the_model(any_tap: str, met_before: bool) -> None:
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2)
    compiled = torch.compile(model, backend="eager")
    if met_before:
        compiled(x)
    others = [nn.ReLU() for _ in range(100)]

    def run() -> None:
        for other in others:
            other(x)
        for _ in range(3):
            compiled(x)

    trace = tv.record(model, run)
    assert trace.calls["path"].tolist() == ["model"] * 3
    assert trace.calls["frame"].tolist() == [0, 1, 2]
    assert trace.facts["one_call"] == {"model": "compiled"}
    assert tv.record(compiled, lambda: model(x)).calls["path"].tolist() == ["model._orig_mod", "model._orig_mod.0"]


@tap_alone
def test_a_part_that_was_compiled_on_its_own_is_recorded_as_the_part(any_tap: str) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(2, 2)
            self.compiled = [torch.compile(self.part, backend="eager")]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.compiled[0](x)
            return out

    model = Outer()
    trace = tv.record(model, lambda: model(torch.zeros(1, 2)))
    assert trace.calls["path"].tolist() == ["model", "model.part"]
    assert "strange_calls" not in trace.facts


def test_hooks_say_that_they_saw_nothing_of_what_is_compiled() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    compiled = torch.compile(model, backend="eager")
    with pytest.warns(RuntimeWarning, match="it was not called, or in a function that is compiled as a whole"):
        assert tv.record(model, lambda: compiled(torch.zeros(1, 2)), via="hooks").calls.empty


@every_way
def test_tensors_in_objects_of_any_kind(any_tap: str) -> None:
    class Batch:
        def __init__(self) -> None:
            self.x, self._store = torch.zeros(2), types.SimpleNamespace(y=torch.zeros(3))

    class Slotted:
        __slots__ = ("tensor", "unset")

        def __init__(self) -> None:
            self.tensor = torch.zeros(4)

    class Takes(nn.Module):
        def forward(self, *values: Any) -> None:
            return None

    model = Takes()
    values = (Batch(), Slotted(), collections.deque([torch.zeros(5)]), collections.UserDict(z=torch.zeros(6)))
    trace = tv.record(model, lambda: model(*values))
    assert [(one.name, one.shape) for one in trace.calls["inputs"][0]] == [
        ("0.x", (2,)),
        ("0.y", (3,)),
        ("1.tensor", (4,)),
        ("2.0", (5,)),
        ("3.z", (6,)),
    ]


@every_way
def test_values_that_must_not_be_looked_at(any_tap: str, tmp_path: Path) -> None:
    class Lazy(collections.abc.Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise RuntimeError("not loaded")

        def __iter__(self) -> Any:
            while True:
                yield "a"

        def __len__(self) -> int:
            return 1

    class Strange(list[Any]):
        def __iter__(self) -> Any:
            raise RuntimeError("read once")

    class Raises(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise RuntimeError("of no use")

    class Key:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    class Returns(nn.Module):
        def forward(self, x: torch.Tensor, value: Any) -> Any:
            return x, value

    model, x, file = Returns(), torch.zeros(2), tmp_path / "run.parquet"
    for value in (Lazy(), Strange([1]), torch.zeros(1).as_subclass(Raises), {Key(): x}, {"a\udcff": x}, [0] * 10**6):
        for measure in (None, "flow", "cost"):
            trace = tv.record(model, lambda value=value: model(x, value), measure=measure, file=file)
            assert trace.calls["inputs"][0][0].shape == (2,)
            assert [found.name for found in tmp_path.iterdir()] == ["run.parquet"]


def test_the_cost_that_is_stated_is_of_the_run() -> None:
    model, x = nn.Sequential(*[nn.Identity() for _ in range(50)]), torch.zeros(1)
    few = tv.record(model, lambda: model(x))
    assert "own_cost_ns" not in few.facts  # 51 calls do not tell
    many = [tv.record(model, lambda: [model(x) for _ in range(40)]).facts["own_cost_ns"] for _ in range(5)]
    assert min(many) > 50
    assert sorted(many)[2] < 20_000  # the median: a run may have been interrupted


def test_the_header_is_there_at_once_and_calls_half_a_second_later(tmp_path: Path) -> None:
    class Sleeps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.2)
            return x

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(*[Sleeps() for _ in range(6)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found.append(len(tv.Trace.load(partial).calls))
            x = self.inner(x)
            found.append(len(tv.Trace.load(partial).calls))
            return x

    partial, found = tmp_path / "run.parquet.partial", []
    model = Looks()
    with tv.recording(model, file=tmp_path / "run.parquet"):
        model(torch.zeros(1))
    assert found[0] == 0
    assert found[1] >= 5  # of 8, all in one pass
