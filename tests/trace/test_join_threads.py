"""Of a run on several threads, what is measured is that of the one that began to record."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import talkerviz as tv
from talkerviz.trace.join import join


class Experts(nn.Module):
    """Each on a thread of its own, which end in any order; then a layer for what they give."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.last = nn.Linear(4, 2)
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, found = self.first(x), {}

        def run(number: int) -> None:
            found[number] = self.experts[number](x)

        for number in self.order:
            thread = threading.Thread(target=run, args=(number,))
            thread.start()
            thread.join()
        return self.last(torch.stack([found[number] for number in range(3)]).sum(0))


def test_calls_of_threads_in_another_order() -> None:
    order, x = [0, 1, 2], torch.ones(3, 4)
    model = Experts(order)
    trace = tv.record(model, lambda: model(x))
    order.reverse()
    for measure in ("flow", "cost"):
        trace = join(trace, tv.record(model, lambda: model(x), measure=measure, clock="none"))
    calls = trace.calls
    experts = [f"model.experts.{number}" for number in range(3)]
    assert calls["path"].tolist() == ["model", "model.first", *experts, "model.last"]
    assert calls["thread"].tolist() == [0, 0, 1, 2, 3, 0]
    # What the model had its threads do is not in what was seen of it.
    for column in ("flops", "bytes_read", "bytes_written"):
        assert calls[column].isna().tolist() == [True, False, True, True, True, False]
    assert calls["flops"].dropna().tolist() == [2 * 3 * 16, 2 * 3 * 8]
    assert trace.facts["unwatched_calls"] == 3
    assert trace.flow is not None
    ops = trace.flow.ops[trace.flow.ops["kind"] == "op"]
    found = zip(ops["name"], ops["call"], ops["after"], strict=True)
    assert list(found) == [("linear", 1, 1), ("stack", 0, 1), ("sum", 0, 1), ("linear", 5, 5)]


def test_the_thread_that_records_is_number_0() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.ones(1, 4)

    def run() -> None:
        thread = threading.Thread(target=lambda: model[0](x))
        thread.start()
        thread.join()
        model(x)

    plain, costs = tv.record(model, run), tv.record(model, run, measure="cost")
    assert plain.calls["thread"].tolist() == [1, 0, 0]
    assert join(plain, costs).calls["flops"].isna().tolist() == [True, False, False]


def test_nothing_is_known_where_all_calls_are_others() -> None:
    model, x = nn.Linear(4, 4), torch.ones(1, 4)

    def run() -> None:
        thread = threading.Thread(target=lambda: model(x))
        thread.start()
        thread.join()

    with pytest.raises(ValueError, match="threads that are not watched"):
        join(tv.record(model, run), tv.record(model, run, measure="flow"))
