"""KV caches: calls that differ only in the length of a cache count as equal, as all decode steps do."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from talkerviz.trace.schema import Tensors

Lists = tuple[Tensors, Tensors]

# `past_key_values.layers.*.keys`, `cache.keys`, `4.layers.0-27.values`.
_CACHED = re.compile(r"(^|[._])(cache|past)|\.layers\.[\d,*-]+\.")
_NAME_CACHE_SIZE = 1 << 16  # distinct tensor names; caches of thousands of layers have fewer


@functools.lru_cache(_NAME_CACHE_SIZE)
def is_cached(name: str) -> bool:
    """Return whether a tensor is inside a KV cache, by its name."""
    return "." in name and bool(_CACHED.search(name))


def merge_cache_growth(
    calls: pd.DataFrame, parent: np.ndarray, signature: np.ndarray, lists: Sequence[Lists]
) -> np.ndarray:
    """Make the signatures of calls equal that differ only in a KV cache, or in tensors that grow with it.

    From one frame or step to the next attention masks grow with the cache and the rest of the prompt shrinks, while
    activations keep their size. So some sizes differ, all by the same amount, and the first result keeps its shape, in
    the call itself or in its parent.

    Args:
        calls: calls table.
        parent: row of each call's parent; a number beyond the calls for none.
        signature: number of each call's tensors in `lists`.
        lists: pairs of input and output tensor lists.

    Returns:
        The signature of each call, equal for calls that differ only by growth.
    """
    if not len(calls):
        return signature
    signature, lists = _without_caches(signature, lists)
    path, phase, depth = (
        codes.to_numpy().astype(np.int64)
        for codes in (calls["path"].cat.codes, calls["phase"].cat.codes, calls["depth"])
    )
    frame, step = (calls[name].to_numpy(dtype=np.int64, na_value=-1) for name in ("frame", "step"))
    # Signatures are joined for one module in one phase; a state is such a module and phase with a signature.
    module = path * (phase.max() + 2) + phase + 1
    states, state = np.unique(module * len(lists) + signature, return_inverse=True)
    joined = _Joined(states % len(lists))
    # Parents before children, since a child's growth depends on its parent's.
    order = np.lexsort((np.arange(len(calls)), module, depth))
    one, two = order[:-1], order[1:]
    follows = (module[one] == module[two]) & (signature[one] != signature[two])
    follows &= (frame[one] != frame[two]) | (step[one] != step[two])
    seen: dict[tuple[int, int], tuple[bool, bool]] = {}
    for before, after in zip(one[follows].tolist(), two[follows].tolist(), strict=True):
        if joined.same(state[before], state[after]):
            continue
        pair = (int(signature[before]), int(signature[after]))
        if pair not in seen:
            seen[pair] = has_grown(lists[pair[0]], lists[pair[1]])
        growing, same_result = seen[pair]
        if growing and not same_result:
            parents = int(parent[before]), int(parent[after])
            growing = max(parents) < len(calls) and joined.same(*state[list(parents)])
            growing = growing and signature[parents[0]] != signature[parents[1]]
        if growing:
            joined.join(state[before], state[after])
    return joined.signatures()[state]


def _without_caches(signature: np.ndarray, lists: Sequence[Lists]) -> tuple[np.ndarray, list[Lists]]:
    numbers: dict[Lists, int] = {}
    kept: dict[int, Tensors] = {}  # by identity, since pairs share lists

    def without(tensors: Tensors) -> Tensors:
        known = kept.get(id(tensors))
        if known is None:
            known = kept[id(tensors)] = tuple(tensor for tensor in tensors if not is_cached(tensor.name))
        return known

    of_list = [numbers.setdefault((without(inputs), without(outputs)), len(numbers)) for inputs, outputs in lists]
    return np.array(of_list, dtype=np.int64)[signature], list(numbers)


def has_grown(before: Lists, after: Lists) -> tuple[bool, bool]:
    """Return whether sizes differ all by one amount, and whether in that case the first result keeps its shape."""
    steps = set()
    for ones, twos in zip(before, after, strict=True):
        if len(ones) != len(twos):
            return False, False
        for one, two in zip(ones, twos, strict=True):
            if one.name != two.name or one.dtype != two.dtype or len(one.shape) != len(two.shape):
                return False, False
            steps |= {abs(b - a) for a, b in zip(one.shape, two.shape, strict=True) if a != b}
    growing = len(steps) == 1
    return growing, growing and before[1][:1] == after[1][:1]


class _Joined:
    """Union-find of states; each set is represented by its smallest signature."""

    def __init__(self, signature: np.ndarray) -> None:
        self._signature = signature
        self._above = list(range(len(signature)))

    def same(self, one: int, two: int) -> bool:
        return self._of(one) == self._of(two)

    def join(self, one: int, two: int) -> None:
        low, high = sorted((self._of(one), self._of(two)), key=lambda state: int(self._signature[state]))
        self._above[high] = low

    def signatures(self) -> np.ndarray:
        return self._signature[[self._of(state) for state in range(len(self._above))]]

    def _of(self, state: int) -> int:
        while self._above[state] != state:
            self._above[state] = state = self._above[self._above[state]]
        return state
