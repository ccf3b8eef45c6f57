"""Operations outside modules, as a training step has many: backward, optimizer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from talkerviz.graph.fold import Fold
from talkerviz.graph.rows import Rows

_MOST = 10
"""Boxes of operations in a phase that are drawn each for itself."""


def gather(rows: Rows, folds: list[Fold]) -> list[Fold]:
    """What stands in a phase, with one box for all operations between two modules, if those boxes would be many.

    What only such a box reads from outside is one as well.
    """
    if sum(fold.kind == "operation" for fold in folds) <= _MOST:
        return folds
    gathered: list[Fold] = []
    stretch: Fold | None = None  # the operations since the last module
    for fold in folds:
        if fold.kind == "input":
            gathered.append(fold)
        elif fold.kind != "operation":
            gathered.append(fold)
            stretch = None
        elif stretch is None:
            gathered.append(stretch := fold)
        else:
            gathered[gathered.index(stretch)] = stretch = _together([stretch, fold])
    for stretch in [fold for fold in gathered if fold.kind == "operation"]:
        inputs = [fold for fold in gathered if fold.kind == "input" and _is_read_in(rows, fold, stretch)]
        if len(inputs) > 1:
            gathered = [fold for fold in gathered if fold not in inputs]
            gathered.insert(gathered.index(stretch), _together(inputs))
    return gathered


def _together(folds: list[Fold]) -> Fold:
    fewest, most = (pick(fold.each[side] for fold in folds) for side, pick in enumerate((min, max)))
    return replace(folds[0], rows=np.sort(np.concatenate([fold.rows for fold in folds])), each=(fewest, most))


def _is_read_in(rows: Rows, fold: Fold, stretch: Fold) -> bool:
    """Whether nothing else reads it."""
    assert rows.trace.flow is not None
    edges = rows.trace.flow.edges
    readers = edges["target"].to_numpy()[np.isin(edges["source"].to_numpy(), fold.rows - rows.calls)]
    return bool(np.isin(readers + rows.calls, stretch.rows).all())
