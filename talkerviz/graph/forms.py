"""Numbers that tell which rows are alike: equal for equal classes, shapes and insides, however deep these are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from talkerviz.graph.rows import Rows

_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class Forms:
    """A row's form, twice.

    Attributes:
        exact: equal for rows of one class with the same tensors, whose insides are the same calls and operations in
            the same order, with the same tensors.
        alike: equal for rows of one class with the same tensors, inside which the same modules are called, however
            often and with whatever tensors: experts get other tokens in each layer.
    """

    exact: np.ndarray
    alike: np.ndarray


def forms_of(rows: Rows) -> Forms:
    """The forms of all rows but those of phases, as 64-bit hashes worked out from the deepest up."""
    name, kind, loose = (mix(values.astype(np.uint64)) for values in (rows.name, rows.kind, rows.loose))
    is_call = np.arange(len(rows.parent)) < rows.calls
    # An operation is known by its name: how large its tensors are follows from what they come from.
    exact = mix(kind ^ mix(np.where(is_call, loose, np.uint64(0))))
    skeleton = kind.copy()
    order = 1 + rows.position.astype(np.uint64)
    rows_inside = np.flatnonzero(rows.parent >= 0)
    rows_inside = rows_inside[np.argsort(rows.depth[rows_inside], kind="stable")]
    levels = np.split(rows_inside, np.flatnonzero(np.diff(rows.depth[rows_inside])) + 1) if len(rows_inside) else []
    for level in reversed(levels):
        above = rows.parent[level]
        np.add.at(exact, above, mix(mix(exact[level] ^ name[level]) ^ order[level]))
        calls = level[is_call[level]]
        key = mix(skeleton[calls] ^ name[calls])
        pairs = np.unique(np.stack([rows.parent[calls].astype(np.uint64), key], axis=1), axis=0)
        np.add.at(skeleton, pairs[:, 0].astype(np.int64), mix(pairs[:, 1]))
    return Forms(exact, mix(skeleton ^ mix(loose)))


def mix(values: np.ndarray) -> np.ndarray:
    """Numbers spread over 64 bits (the finaliser of splitmix64, Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    values = (values + _ODD).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    spread: np.ndarray = values ^ (values >> np.uint64(31))
    return spread
