"""Random nested values with tensors in them, as modules take and give them."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import nn


@dataclasses.dataclass
class Pair:
    first: Any
    second: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    only: Any


class Named(NamedTuple):
    left: Any
    right: Any


class KVCache:
    def __init__(self, **tensors: Any) -> None:
        vars(self).update(tensors)


def tensors() -> st.SearchStrategy[torch.Tensor]:
    shapes = st.lists(st.integers(0, 3), max_size=3)
    dtypes = st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16])
    made = st.builds(lambda shape, dtype: torch.zeros(shape, dtype=dtype), shapes, dtypes)
    parameters = shapes.map(lambda shape: nn.Parameter(torch.zeros(shape)))
    return st.one_of(made, parameters, shapes.map(lambda shape: torch.empty(shape, device="meta")))


# torch has an argument of that name itself.
KEYS = st.text(st.characters(categories=["L"]), min_size=1, max_size=4).filter(lambda name: name != "self")
VALUES = st.recursive(
    st.one_of(tensors(), st.sampled_from([None, 1, 2.5, "text", torch.float32])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(st.integers(0, 9), inner, max_size=2),
        st.dictionaries(KEYS, inner, max_size=2).map(OrderedDict),
        st.dictionaries(KEYS, inner, max_size=2).map(UserDict),
        st.dictionaries(KEYS, inner, max_size=2).map(lambda d: KVCache(**d)),
        st.builds(Pair, inner, inner),
        st.builds(Slotted, inner),
        st.builds(Named, inner, inner),
    ),
    max_leaves=6,
)
