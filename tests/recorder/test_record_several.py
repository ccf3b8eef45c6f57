"""Recordings inside each other, side by side, and ended in any order."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from contextlib import ExitStack

import pytest
import torch
from small_model import BLOCK, CALLS, made, state, tree, values
from taps import every_way
from torch import nn

import talkerviz as tv

pytestmark = [
    pytest.mark.usefixtures("nothing_is_left"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


@every_way
def test_recordings_inside_one_another(any_tap: str) -> None:
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


@every_way
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_recordings_end_in_any_order(any_tap: str, order: tuple[int, ...]) -> None:
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


@every_way
def test_recordings_side_by_side(any_tap: str) -> None:
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
