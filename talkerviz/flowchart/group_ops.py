"""Grouping of operations outside modules, of which a training step has many: backward, optimizer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays
from talkerviz.flowchart.folding import Fold

_MAX_OP_BOXES = 10
"""Most operation boxes of a phase that are not grouped: more would outnumber the modules in a legible chart."""


def group_ops(rows: CallArrays, folds: list[Fold]) -> list[Fold]:
    """Merge all operations between two modules of a phase into one box, if their boxes would be many.

    Inputs that only such a box reads are merged as well.

    Args:
        rows: rows of the trace.
        folds: children of a phase.
    """
    if sum(fold.kind == "operation" for fold in folds) <= _MAX_OP_BOXES:
        return folds
    boxes: list[list[Fold]] = []
    since_module: list[Fold] | None = None  # operations since the last module
    for fold in folds:
        if fold.kind == "operation" and since_module is not None:
            since_module.append(fold)
            continue
        boxes.append([fold])
        if fold.kind != "input":
            since_module = boxes[-1] if fold.kind == "operation" else None
    grouped = [box[0] if len(box) == 1 else _merge(box) for box in boxes]
    for ops in [fold for fold in grouped if fold.kind == "operation"]:
        inputs = [fold for fold in grouped if fold.kind == "input" and _is_read_only_by(rows, fold, ops)]
        if len(inputs) > 1:
            grouped = [fold for fold in grouped if fold not in inputs]
            grouped.insert(grouped.index(ops), _merge(inputs))
    return grouped


def _merge(folds: list[Fold]) -> Fold:
    fewest, most = (pick(fold.each[side] for fold in folds) for side, pick in enumerate((min, max)))
    return replace(folds[0], rows=np.sort(np.concatenate([fold.rows for fold in folds])), each=(fewest, most))


def _is_read_only_by(rows: CallArrays, fold: Fold, ops: Fold) -> bool:
    return bool(np.isin(rows.readers_of(fold.rows), ops.rows).all())
