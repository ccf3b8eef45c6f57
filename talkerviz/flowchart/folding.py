"""Collapse repeats: identical siblings, consecutive calls, alternating runs."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays
from talkerviz.flowchart.dataflow import Dataflow, edges_inside
from talkerviz.flowchart.fuse_ops import fuse_ops
from talkerviz.flowchart.model import Kind
from talkerviz.flowchart.repeats import Items, Place
from talkerviz.flowchart.similarity import SimilarityHashes, mix

_MAX_SEQUENCES = 100  # child sequences whose edges are read to fuse operations; further ones rarely differ


class FoldLevel(enum.Enum):
    """Similarity at which siblings fold."""

    NOTHING = 0
    EXACT = 1  # equal shapes and equal children, at all depths
    ALIKE = 2  # equal shapes, and the same modules inside


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows that are drawn as one box.

    Attributes:
        kind: kind of the box.
        rows: the rows, in the order of the run; of a `repeat` those of its members.
        each: least and greatest number of rows in one run of the parent, or in one turn of a repeat; of a `repeat` the
            number of turns.
        turns: of a `repeat`, number of each row's turn, different for each run of the parent.
        members: of a `repeat`, the folds that alternate.
    """

    kind: Kind
    rows: np.ndarray
    each: tuple[int, int] = (1, 1)
    turns: np.ndarray | None = None
    members: tuple[Fold, ...] = ()


def phase_folds(rows: CallArrays) -> list[Fold]:
    """Return a fold for each phase with all its frames, in the order in which phases began."""
    by_phase: dict[str, list[int]] = {}
    for number, (name, _) in enumerate(rows.phases):
        by_phase.setdefault(name, []).append(rows.first_phase + number)
    return [Fold("phase", np.array(of_phase), (len(of_phase),) * 2) for of_phase in by_phase.values()]


def fold_children(
    rows: CallArrays, hashes: SimilarityHashes, dataflow: Dataflow, fold: Fold, fold_level: FoldLevel
) -> list[Fold]:
    """Fold the children of a fold, in the order of the run, and fuse operations that only feed each other."""
    if fold.kind == "repeat":
        return list(fold.members)
    child, owner = rows.children_of(fold.rows)
    if not len(child):
        return []
    key = _keys(rows, hashes, fold, child, fold_level)
    position = rows.position[child]
    sequence_hash = np.zeros(len(fold.rows), dtype=np.uint64)
    np.add.at(sequence_hash, owner, mix(key ^ mix(position.astype(np.uint64))))
    _, first, which = np.unique(sequence_hash, return_index=True, return_inverse=True)

    # Runs of the fold with the same sequence of children have the same items, so one run of each sequence is folded.
    items = Items()
    sequences: list[list[tuple[Place, int]]] = [[] for _ in first]
    for sequence in np.argsort(first).tolist():
        here = slice(*np.searchsorted(owner, [first[sequence], first[sequence] + 1]))
        sequences[sequence] = items.add(key[here].tolist(), (child[here] >= rows.calls).tolist())
    begin = np.cumsum([0, *map(len, sequences)])
    at = begin[which.reshape(-1)[owner]] + position
    numbers: dict[Place, int] = {}
    places = [numbers.setdefault(place, len(numbers)) for folded in sequences for place, _ in folded]
    place_at = np.array(places, dtype=np.int64)
    turn_at = np.array([turn for folded in sequences for _, turn in folded], dtype=np.int64)
    place, turn = place_at[at], turn_at[at]

    container = np.array([of.item if items.repeats[of.item] else -1 for of in numbers])
    is_op = child >= rows.calls
    if is_op.any():
        edges: set[tuple[int, int, bool]] = set()
        fed_from_outside = np.zeros(len(numbers), dtype=bool)
        for sequence in np.argsort(first)[:_MAX_SEQUENCES].tolist():
            one, two = edges_inside(rows, dataflow, int(fold.rows[first[sequence]]))
            fed_from_outside[place_at[begin[sequence] + two[one < 0]]] = True
            one, two = begin[sequence] + one[one >= 0], begin[sequence] + two[one >= 0]
            same_turn = (turn_at[one] == turn_at[two]) | (container[place_at[one]] != container[place_at[two]])
            edges.update(zip(place_at[one].tolist(), place_at[two].tolist(), same_turn.tolist(), strict=True))
        operation, light = np.zeros((2, len(numbers)), dtype=bool)
        ops = child[is_op] - rows.calls
        operation[place[is_op][dataflow.joins[ops]]] = True
        light[:] = operation
        light[place[is_op][dataflow.heavy[ops]]] = False
        place = fuse_ops(operation, light, fed_from_outside, container, edges)[place]
        place[is_op] = np.where(dataflow.constant[child[is_op] - rows.calls], -1, place[is_op])

    order = np.argsort(place, kind="stable")
    order = order[place[order] >= 0]
    parts = np.split(order, np.flatnonzero(np.diff(place[order])) + 1) if len(order) else []
    by_place = {int(place[part[0]]): part for part in parts}
    of_item: dict[int, list[np.ndarray]] = {}
    for number, of in sorted(zip(numbers.values(), numbers, strict=True), key=lambda pair: pair[1]):
        if number in by_place:
            of_item.setdefault(of.item, []).append(by_place[number])
    run = owner * (int(turn.max()) + 1) + turn  # run of the parent and turn in it, as one number
    folds = []
    for item in items.order:
        parts = of_item.get(item, [])
        if not items.repeats[item]:
            folds += [_fold(rows, child[part], owner[part], len(fold.rows)) for part in parts]
        elif parts:
            whole = np.concatenate(parts)
            runs = np.unique(run[whole])
            members = tuple(_fold(rows, child[part], run[part], len(runs)) for part in parts)
            turns = _least_and_most(runs // (int(turn.max()) + 1), len(fold.rows))
            folds.append(
                Fold("repeat", child[whole], turns, fold.rows[owner[whole]] * (turn.max() + 1) + turn[whole], members)
            )
    return folds


def _keys(
    rows: CallArrays, hashes: SimilarityHashes, fold: Fold, child: np.ndarray, fold_level: FoldLevel
) -> np.ndarray:
    """Return a key for each child of a fold; children with equal keys may be drawn as one box."""
    if fold_level is FoldLevel.NOTHING:
        return child.astype(np.uint64)
    own_hash = hashes.exact[child]  # also for operations, which have no children
    if fold_level is FoldLevel.ALIKE:
        # If the parents differ inside, they were folded in spite of these children's differences.
        differs = fold.kind == "module" and len(np.unique(hashes.exact[fold.rows])) > 1
        like = hashes.skeleton if differs else hashes.alike
        own_hash = np.where(child < rows.calls, like[child], own_hash)
    return mix(own_hash ^ mix(rows.name[child].astype(np.uint64)))


def _fold(rows: CallArrays, chosen: np.ndarray, run: np.ndarray, runs: int) -> Fold:
    """Build a fold of calls or operations; `run` is the run of the parent that each is in."""
    if chosen[0] < rows.calls:
        kind: Kind = "module"
    else:
        kind = "input" if rows.is_input[chosen[0]] else "operation"
    return Fold(kind, np.sort(chosen), _least_and_most(run, runs))


def _least_and_most(run: np.ndarray, runs: int) -> tuple[int, int]:
    if runs == 1:
        return len(run), len(run)
    _, count = np.unique(run, return_counts=True)
    return int(count.min()) if len(count) == runs else 0, int(count.max())
