"""Descriptions of tensors: the same rows from C and from Python, and what they say when they are read."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_examples import examples
from random_values import VALUES
from torch import nn

from talkerviz.recorder import tap
from talkerviz.recorder.python_events import Callbacks, Contexts
from talkerviz.recorder.tensor_signatures import TensorKinds
from talkerviz.trace.tensor_rows import TensorLists

pytestmark = pytest.mark.skipif(tap.Tap is None, reason="no C compiler built the tap")


class LayerCache:
    def __init__(self, size: int) -> None:
        self.keys, self.values = torch.zeros(1, size), torch.zeros(2, size)


class Cache:
    def __init__(self, sizes: list[int]) -> None:
        self.layers = [LayerCache(size) for size in sizes]


def events(native: bool) -> tuple[Any, dict[str, int], list[Any]]:
    names: dict[str, int] = {}
    kinds: list[Any] = []
    made = tap.make_events(
        tap.Tap if native else None,
        None,
        names,
        TensorKinds(kinds),
        Callbacks(),
        Contexts(ContextVar("phase", default=-1), ContextVar("placed", default=None)),
        timed=False,
    )
    made.thread()
    return made, names, kinds


def described(native: bool, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = -1) -> Any:
    """Return the lists of tensors of a call's arguments and of its result, which is the first of them."""
    made, names, kinds = events(native)
    module = nn.Identity()
    made.watch(module, 0, layer, 0, True)
    made.begin(module, args, kwargs)
    made.end(module, args[0] if args else None)
    rows = made.take_rows()
    numbers = np.frombuffer(made.take(0), dtype=np.int32).reshape(-1, 6)[-2:, 1].tolist()
    lists = TensorLists(list(names), kinds)
    lists.add(rows)
    return rows, [lists[number] for number in numbers]


SIZES = st.lists(st.sampled_from([3, 3, 3, 4, 5]), max_size=40)
CONTAINERS = st.one_of(
    VALUES,
    SIZES.map(lambda sizes: [torch.zeros(size) for size in sizes]),
    SIZES.map(lambda sizes: tuple(torch.zeros(size) for size in sizes)),
    SIZES.map(lambda sizes: [[torch.zeros(size), size] for size in sizes]),
    SIZES.map(Cache),
    SIZES.map(lambda sizes: {"inside": Cache(sizes)}),
)


@settings(deadline=None, max_examples=examples(100))
@given(
    st.lists(CONTAINERS, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), CONTAINERS, max_size=2),
    st.integers(-1, 5),
)
def test_c_and_python_write_the_same_rows(args: tuple[Any, ...], kwargs: dict[str, Any], layer: int) -> None:
    assert described(True, args, kwargs, layer) == described(False, args, kwargs, layer)


@pytest.mark.parametrize("native", [True, False])
def test_a_layer_s_call_reads_its_part_of_a_cache(native: bool) -> None:
    cache = Cache([3] * 20 + [4] * 10)
    _, (inputs, _) = described(native, (), {"cache": cache}, layer=7)
    assert [(one.name, one.shape, one.copies) for one in inputs] == [
        ("cache.layers.*.keys", (1, 3), 1),
        ("cache.layers.*.values", (2, 3), 1),
    ]
    _, (inputs, _) = described(native, (), {"cache": cache})
    assert [(one.name, one.shape, one.copies) for one in inputs] == [
        ("cache.layers.0-19.keys", (1, 3), 20),
        ("cache.layers.0-19.values", (2, 3), 20),
        ("cache.layers.20-29.keys", (1, 4), 10),
        ("cache.layers.20-29.values", (2, 4), 10),
    ]


@pytest.mark.parametrize("native", [True, False])
def test_layers_of_two_kinds_that_take_turns_are_two_entries(native: bool) -> None:
    _, (inputs, _) = described(native, (Cache([3, 3, 5] * 4),), {})
    assert [one.name for one in inputs if one.name.endswith("keys")] == [
        "0.layers.0-1,3-4,6-7,9-10.keys",
        "0.layers.2,5,8,11.keys",
    ]
