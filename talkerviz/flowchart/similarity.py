"""Numbers that tell which rows are alike: equal for equal classes, shapes and insides, however deep these are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays

_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class SimilarityHashes:
    """A row's form, three times.

    Attributes:
        exact: equal for rows of one class with the same tensors, whose insides are the same calls in the same order,
            with the same tensors. Operations between them do not count: how often experts compute is up to the data.
        alike: equal for rows of one class with the same tensors, inside which the same modules are called, however
            often and with whatever tensors: experts get other tokens in each layer.
        skeleton: equal for rows of one class inside which the same modules are called.
    """

    exact: np.ndarray
    alike: np.ndarray
    skeleton: np.ndarray


def similarity_hashes(rows: CallArrays) -> SimilarityHashes:
    """The forms of all rows but those of phases, as 64-bit hashes worked out from the deepest up."""
    name, kind, loose = (mix(values.astype(np.uint64)) for values in (rows.name, rows.kind, rows.loose))
    is_call = np.arange(len(rows.parent)) < rows.calls
    # An operation is known by its name: how large its tensors are follows from what they come from.
    exact = mix(kind ^ mix(np.where(is_call, loose, np.uint64(0))))
    skeleton = kind.copy()
    order = 1 + _place_among_calls(rows, is_call).astype(np.uint64)
    for level in reversed(rows.levels):
        calls = level[is_call[level]]
        np.add.at(exact, rows.parent[calls], mix(mix(exact[calls] ^ name[calls]) ^ order[calls]))
        key = mix(skeleton[calls] ^ name[calls])
        parent = rows.parent[calls]
        order_of = np.lexsort((key, parent))
        parent, key = parent[order_of], key[order_of]
        new = np.ones(len(key), dtype=bool)
        new[1:] = (np.diff(parent) != 0) | (key[1:] != key[:-1])
        np.add.at(skeleton, parent[new], mix(key[new]))
    return SimilarityHashes(exact, mix(skeleton ^ mix(loose)), skeleton)


def _place_among_calls(rows: CallArrays, is_call: np.ndarray) -> np.ndarray:
    """The place of each row among the calls of its parent."""
    calls_before = np.cumsum(is_call[rows.children]) - is_call[rows.children]
    place = np.zeros(len(rows.parent), dtype=np.int64)
    place[rows.children] = calls_before
    of_parent = np.zeros(len(rows.parent), dtype=np.int64)
    with_children = rows.count > 0
    of_parent[with_children] = calls_before[rows.first[with_children]]
    return place - np.where(rows.parent >= 0, of_parent[rows.parent], 0)


def mix(values: np.ndarray) -> np.ndarray:
    """Numbers spread over 64 bits (the finaliser of splitmix64, Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    values = (values + _ODD).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    spread: np.ndarray = values ^ (values >> np.uint64(31))
    return spread
