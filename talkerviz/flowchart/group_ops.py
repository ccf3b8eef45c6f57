"""Operations outside modules, as a training step has many: backward, optimizer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays
from talkerviz.flowchart.folding import Fold

_MOST = 10
"""Boxes of operations in a phase that are drawn each for itself."""


def gather(rows: CallArrays, folds: list[Fold]) -> list[Fold]:
    """What stands in a phase, with one box for all operations between two modules, if those boxes would be many.

    What only such a box reads from outside is one as well.
    """
    if sum(fold.kind == "operation" for fold in folds) <= _MOST:
        return folds
    boxes: list[list[Fold]] = []
    since_module: list[Fold] | None = None  # the operations
    for fold in folds:
        if fold.kind == "operation" and since_module is not None:
            since_module.append(fold)
            continue
        boxes.append([fold])
        if fold.kind != "input":
            since_module = boxes[-1] if fold.kind == "operation" else None
    gathered = [box[0] if len(box) == 1 else _together(box) for box in boxes]
    for stretch in [fold for fold in gathered if fold.kind == "operation"]:
        inputs = [fold for fold in gathered if fold.kind == "input" and _is_read_in(rows, fold, stretch)]
        if len(inputs) > 1:
            gathered = [fold for fold in gathered if fold not in inputs]
            gathered.insert(gathered.index(stretch), _together(inputs))
    return gathered


def _together(folds: list[Fold]) -> Fold:
    fewest, most = (pick(fold.each[side] for fold in folds) for side, pick in enumerate((min, max)))
    return replace(folds[0], rows=np.sort(np.concatenate([fold.rows for fold in folds])), each=(fewest, most))


def _is_read_in(rows: CallArrays, fold: Fold, stretch: Fold) -> bool:
    """Whether nothing else reads it."""
    return bool(np.isin(rows.readers_of(fold.rows), stretch.rows).all())
