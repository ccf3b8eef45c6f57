"""Threads, tasks and generators that take turns, and recordings of one of them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import multiprocessing
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from taps import every_way
from torch import nn

import talkerviz as tv
from talkerviz.analysis.frame_latency import frame_latencies
from talkerviz.render.notes import notes_on


class Steps(nn.Module):
    """A head that is called between the passes of a body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def batches(trace: tv.Trace) -> list[int]:
    """Of each call the size of the batch that went in: whose it is."""
    return [inputs[0].shape[0] for inputs in trace.calls["inputs"]]


async def answer(model: Steps, batch: int, passes: int = 3) -> None:
    x = torch.ones(batch, 4)
    for _ in range(passes):
        x = model(x)
        await asyncio.sleep(0)
        x = model.head(x)
        await asyncio.sleep(0)


@every_way
def test_each_task_records_its_own_request(any_tap: str) -> None:
    model = Steps()

    async def traced(batch: int) -> tv.Trace:
        with tv.recording(model, only="here") as rec:
            await answer(model, batch)
        return rec.trace

    async def serve() -> list[Any]:
        return await asyncio.gather(traced(1), answer(model, 2), traced(3), answer(model, 4))

    for number, trace in enumerate(asyncio.run(serve())):
        if trace is not None:
            assert batches(trace) == [number + 1] * 9
            assert any("other threads and tasks" in note for note in notes_on(trace))


@every_way
def test_each_thread_records_its_own_request(any_tap: str) -> None:
    model, together = Steps(), threading.Barrier(4)

    def traced(batch: int) -> tv.Trace:
        together.wait()
        with tv.recording(model, only="here") as rec:
            asyncio.run(answer(model, batch))
        return rec.trace

    with ThreadPoolExecutor(4) as pool:
        for number, trace in enumerate(pool.map(traced, range(1, 5))):
            assert batches(trace) == [number + 1] * 9


def test_what_a_task_hands_to_a_thread_is_its_own() -> None:
    model = Steps()

    async def serve() -> tv.Trace:
        with tv.recording(model, only="here") as rec:
            await asyncio.to_thread(model, torch.ones(1, 4))
            other = threading.Thread(target=model, args=(torch.ones(2, 4),))
            other.start()
            other.join()
        return rec.trace

    trace = asyncio.run(serve())
    assert batches(trace) == [1, 1]
    assert trace.facts["calls_of_other_threads"] == 2


def test_one_request_is_recorded_by_what_runs_it() -> None:
    model = Steps()
    trace = tv.record(model, lambda: model(torch.ones(1, 4)), only="here", measure=("cost", "flow"))
    assert batches(trace) == [1, 1]
    assert trace.calls["flops"].tolist() == [32, 32]


def test_only_here_is_all_that_only_may_be() -> None:
    with pytest.raises(ValueError, match="unknown only 'there'"), tv.recording(nn.Linear(1, 1), only="there"):
        pass


def test_nothing_is_left_in_a_context() -> None:
    model = Steps()

    def variables() -> set[str]:
        return {variable.name for variable in contextvars.copy_context()}

    before = variables()
    with tv.recording(model, only="here") as rec, rec.phase("named"):
        model(torch.ones(1, 4))
    assert variables() == before


@every_way
def test_frames_go_with_their_task(any_tap: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **sizes)).eval()
    embed = model.get_input_embeddings()

    async def generate(batch: int) -> None:
        cache, ids = transformers.DynamicCache(), torch.ones(batch, 3, dtype=torch.long)
        for _ in range(3):
            model(ids, past_key_values=cache)
            await asyncio.sleep(0)
            ids = torch.ones(batch, 1, dtype=torch.long)
            embed(ids)  # between passes: of the frame of its own task
            await asyncio.sleep(0)

    async def serve() -> None:
        await asyncio.gather(generate(1), generate(2))

    with torch.no_grad(), tv.recording(model) as rec:
        asyncio.run(serve())
    calls = rec.trace.calls.assign(batch=batches(rec.trace))
    at_top = calls[calls["parent"].isna()]
    assert at_top.groupby("request")["batch"].unique().map(list).tolist() == [[1], [2]]
    passes = at_top[at_top["path"] == "model"]
    assert passes["frame"].tolist() == [0, 1, 2, 3, 4, 5]
    between = at_top[at_top["path"] != "model"]
    assert between["frame"].tolist() == passes["frame"].tolist()


@every_way
def test_frames_go_with_their_thread(any_tap: str) -> None:
    model, turn = Steps(), threading.Barrier(2)

    def work(batch: int) -> None:
        for _ in range(3):
            turn.wait()
            model(torch.ones(batch, 4))
            turn.wait()
            model.head(torch.ones(batch, 4))

    with tv.recording(model) as rec:
        threads = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    calls = rec.trace.calls.assign(batch=batches(rec.trace))
    assert (calls.groupby("frame")["batch"].nunique() == 1).all()
    assert calls.groupby("frame").size().tolist() == [3] * 6
    # Each lasts until the next one of its own thread, though others begin meanwhile.
    first = calls.groupby("frame")[["host_start_ns", "thread"]].first()
    latency = frame_latencies(rec.trace).set_index("frame")["latency_ns"]
    for _, own in first.groupby("thread"):
        starts = own["host_start_ns"].astype(int)
        assert latency[own.index[:-1]].tolist() == starts.diff().dropna().astype(int).tolist()


@every_way
def test_a_phase_goes_with_its_generator(any_tap: str) -> None:
    model = nn.Linear(2, 2)

    def tokens(rec: tv.Recording, name: str, batch: int) -> Iterator[None]:
        with rec.phase(name):
            for _ in range(2):
                model(torch.ones(batch, 2))
                yield
            with rec.phase(f"{name} inside"):
                model(torch.ones(batch, 2))

    with tv.recording(model) as rec:
        one, two = tokens(rec, "one", 1), tokens(rec, "two", 2)
        for _ in range(2):
            next(one)
            model(torch.ones(3, 2))
            with rec.phase("outer"):
                next(two)
                model(torch.ones(4, 2))
        for generator in (one, two):
            with contextlib.suppress(StopIteration):
                next(generator)
        with rec.phase("after"):
            model(torch.ones(5, 2))
    round_trip = [("one", 1), ("forward", 3), ("two", 2), ("outer", 4)]
    assert list(zip(rec.trace.calls["phase"], batches(rec.trace), strict=True)) == [
        *round_trip * 2,
        ("one inside", 1),
        ("two inside", 2),
        ("after", 5),
    ]


def test_a_phase_goes_with_its_asynchronous_generator() -> None:
    model = nn.Linear(2, 2)

    async def tokens(rec: tv.Recording) -> Any:
        with rec.phase("inside"):
            for _ in range(2):
                model(torch.ones(1, 2))
                yield

    async def serve(rec: tv.Recording) -> None:
        async for _ in tokens(rec):
            model(torch.ones(2, 2))

    with tv.recording(model) as rec:
        asyncio.run(serve(rec))
    assert list(zip(rec.trace.calls["phase"], batches(rec.trace), strict=True)) == [("inside", 1), ("forward", 2)] * 2


def test_a_generator_that_is_given_up_leaves_no_phase() -> None:
    model = nn.Linear(2, 2)

    def tokens(rec: tv.Recording) -> Iterator[None]:
        with rec.phase("inside"):
            yield

    with tv.recording(model) as rec:
        generator = tokens(rec)
        next(generator)
        del generator
        model(torch.ones(1, 2))
        assert not rec._marker.blocks._open
    assert rec.trace.calls["phase"].tolist() == ["forward"]


def call_in_process(model: nn.Module, done: Any) -> None:
    model(torch.ones(1, 4))
    done.put(os.getpid())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_calls_of_other_processes_are_said_to_be_missing(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context = multiprocessing.get_context(method)
    model, done = Steps(), context.Queue()
    with tv.recording(model) as rec:
        model(torch.ones(1, 4))
        process = context.Process(target=call_in_process, args=(model, done))
        process.start()
        assert done.get(timeout=60) != os.getpid()
        process.join()
    assert len(rec.trace.calls) == 2
    assert "Processes that began meanwhile: 1. What they called is in no row." in notes_on(rec.trace)


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Run an application with uvicorn; gives its address."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def in_thread_pool(model: Steps, traces: dict[int, tv.Trace]) -> Callable[..., Any]:
    def endpoint(batch: int) -> int:
        with tv.recording(model, only="here") as rec:
            for _ in range(20):
                model.head(model(torch.ones(batch, 4)))
        traces[batch] = rec.trace
        return batch

    return endpoint


def on_the_event_loop(model: Steps, traces: dict[int, tv.Trace]) -> Callable[..., Any]:
    async def endpoint(batch: int) -> int:
        with tv.recording(model, only="here") as rec:
            await answer(model, batch, 20)
        traces[batch] = rec.trace
        return batch

    return endpoint


@pytest.mark.parametrize("make", [in_thread_pool, on_the_event_loop])
def test_a_server_traces_each_of_eight_requests_at_once(make: Callable[..., Any]) -> None:
    fastapi = pytest.importorskip("fastapi")
    model, traces = Steps(), dict[int, tv.Trace]()
    app = fastapi.FastAPI()
    app.get("/")(make(model, traces))
    together = threading.Barrier(8)

    def ask(address: str, batch: int) -> bytes:
        together.wait()
        with urllib.request.urlopen(f"{address}?batch={batch}", timeout=60) as reply:
            body: bytes = reply.read()
        return body

    with served(app) as address, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda batch: ask(address, batch), range(1, 9)))
    assert replies == [str(batch).encode() for batch in range(1, 9)]
    for batch, trace in traces.items():
        assert batches(trace) == [batch] * 60
    # Nothing stands in for `__call__` any more.
    assert "__call__" in vars(nn.Module)
    assert nn.Module.__call__.__qualname__ == "Module._wrapped_call_impl"
