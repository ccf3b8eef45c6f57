"""Structural similarity of calls: hashes that are equal for equal classes, shapes and children, at any depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # increment of splitmix64


@dataclass(frozen=True, eq=False)
class SimilarityHashes:
    """Three 64-bit hashes of each row, from strict to loose.

    Attributes:
        exact: equal for rows of one class and the same tensors whose children are the same calls in the same order.
            Operations between the calls do not count: how often experts compute depends on the data.
        alike: equal for rows of one class and the same tensors that call the same modules, any number of times and with
            any tensors: experts get different tokens in each layer.
        skeleton: equal for rows of one class that call the same modules.
    """

    exact: np.ndarray
    alike: np.ndarray
    skeleton: np.ndarray


def similarity_hashes(rows: CallArrays) -> SimilarityHashes:
    """Hash all rows but those of phases, from the deepest up."""
    name, kind, loose = (mix(values.astype(np.uint64)) for values in (rows.name, rows.kind, rows.loose))
    is_call = np.arange(len(rows.parent)) < rows.calls
    # An operation is hashed by name: the sizes of its tensors follow from its inputs.
    exact = mix(kind ^ mix(np.where(is_call, loose, np.uint64(0))))
    skeleton = kind.copy()
    order = 1 + _index_among_calls(rows, is_call).astype(np.uint64)
    for level in reversed(rows.levels):
        calls = level[is_call[level]]
        np.add.at(exact, rows.parent[calls], mix(mix(exact[calls] ^ name[calls]) ^ order[calls]))
        key = mix(skeleton[calls] ^ name[calls])
        parent = rows.parent[calls]
        by_parent = np.lexsort((key, parent))
        parent, key = parent[by_parent], key[by_parent]
        is_first = np.ones(len(key), dtype=bool)
        is_first[1:] = (np.diff(parent) != 0) | (key[1:] != key[:-1])
        np.add.at(skeleton, parent[is_first], mix(key[is_first]))
    return SimilarityHashes(exact, mix(skeleton ^ mix(loose)), skeleton)


def _index_among_calls(rows: CallArrays, is_call: np.ndarray) -> np.ndarray:
    """Return the index of each row among its parent's child calls."""
    calls_before = np.cumsum(is_call[rows.children]) - is_call[rows.children]
    index = np.zeros(len(rows.parent), dtype=np.int64)
    index[rows.children] = calls_before
    offset = np.zeros(len(rows.parent), dtype=np.int64)
    with_children = rows.count > 0
    offset[with_children] = calls_before[rows.first[with_children]]
    return index - np.where(rows.parent >= 0, offset[rows.parent], 0)


def mix(values: np.ndarray) -> np.ndarray:
    """Hash integers to 64 bits (the finaliser of splitmix64, Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    values = (values + _GOLDEN_GAMMA).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
