"""What repeats is one: siblings that are alike, calls that follow each other, siblings that take turns."""

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

_MOST_SEQUENCES = 100  # whose wiring is looked at to join operations; more are hardly ever different


class FoldLevel(enum.Enum):
    """What folds."""

    nothing = 0
    exact = 1  # equal in all shapes and in all that is inside
    alike = 2  # equal in their own shapes, and in which modules are inside


@dataclass(frozen=True, eq=False)
class Fold:
    """CallArrays that are drawn as one.

    Attributes:
        kind: what they are.
        rows: the rows, in the order of the run; of a `repeat` those of its members.
        each: how many of them are in one run of what they stand in, or in one turn of a repeat, at the least, which
            may be 0, and at the most; of a `repeat` itself how many turns.
        turns: of a `repeat`, the number of each row's turn, another one for each run of what it stands in.
        members: of a `repeat`, what takes turns.
    """

    kind: Kind
    rows: np.ndarray
    each: tuple[int, int] = (1, 1)
    turns: np.ndarray | None = None
    members: tuple[Fold, ...] = ()


def phases_of(rows: CallArrays) -> list[Fold]:
    """A fold for each phase, of all its frames, in the order in which phases began."""
    places: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(rows.phases):
        places.setdefault(name, []).append(rows.first_phase + place)
    return [Fold("phase", np.array(of_phase), (len(of_phase),) * 2) for of_phase in places.values()]


def inside(rows: CallArrays, forms: SimilarityHashes, wiring: Dataflow, fold: Fold, likeness: FoldLevel) -> list[Fold]:
    """What stands in a fold, folded, in the order of the run; operations that only feed each other are one."""
    if fold.kind == "repeat":
        return list(fold.members)
    child, owner = rows.children_of(fold.rows)
    if not len(child):
        return []
    key = _keys(rows, forms, fold, child, likeness)
    position = rows.position[child]
    hashes = np.zeros(len(fold.rows), dtype=np.uint64)
    np.add.at(hashes, owner, mix(key ^ mix(position.astype(np.uint64))))
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)

    # Runs of the fold with the same children in the same order have the same items: fold one run of each.
    items = Items()
    found: list[list[tuple[Place, int]]] = [[] for _ in first]
    for sequence in np.argsort(first).tolist():
        here = slice(*np.searchsorted(owner, [first[sequence], first[sequence] + 1]))
        found[sequence] = items.add(key[here].tolist(), (child[here] >= rows.calls).tolist())
    begin = np.cumsum([0, *map(len, found)])
    at = begin[which.reshape(-1)[owner]] + position
    numbers: dict[Place, int] = {}
    place_at = np.array([numbers.setdefault(place, len(numbers)) for one in found for place, _ in one], dtype=np.int64)
    turn_at = np.array([turn for one in found for _, turn in one], dtype=np.int64)
    place, turn = place_at[at], turn_at[at]

    container = np.array([of.item if items.repeats[of.item] else -1 for of in numbers])
    is_op = child >= rows.calls
    if is_op.any():
        edges: set[tuple[int, int, bool]] = set()
        fed_from_outside = np.zeros(len(numbers), dtype=bool)
        for sequence in np.argsort(first)[:_MOST_SEQUENCES].tolist():
            one, two = edges_inside(rows, wiring, int(fold.rows[first[sequence]]))
            fed_from_outside[place_at[begin[sequence] + two[one < 0]]] = True
            one, two = begin[sequence] + one[one >= 0], begin[sequence] + two[one >= 0]
            same_turn = (turn_at[one] == turn_at[two]) | (container[place_at[one]] != container[place_at[two]])
            edges.update(zip(place_at[one].tolist(), place_at[two].tolist(), same_turn.tolist(), strict=True))
        operation, light = np.zeros((2, len(numbers)), dtype=bool)
        ops = child[is_op] - rows.calls
        operation[place[is_op][wiring.joins[ops]]] = True
        light[:] = operation
        light[place[is_op][wiring.heavy[ops]]] = False
        place = fuse_ops(operation, light, fed_from_outside, container, edges)[place]
        place[is_op] = np.where(wiring.constant[child[is_op] - rows.calls], -1, place[is_op])

    order = np.argsort(place, kind="stable")
    order = order[place[order] >= 0]
    parts = np.split(order, np.flatnonzero(np.diff(place[order])) + 1) if len(order) else []
    by_place = {int(place[part[0]]): part for part in parts}
    of_item: dict[int, list[np.ndarray]] = {}
    for number, of in sorted(zip(numbers.values(), numbers, strict=True), key=lambda pair: pair[1]):
        if number in by_place:
            of_item.setdefault(of.item, []).append(by_place[number])
    run = owner * (int(turn.max()) + 1) + turn  # which run of what it stands in, and there which turn
    folds = []
    for item in items.order:
        parts = of_item.get(item, [])
        if not items.repeats[item]:
            folds += [_fold(rows, child[part], owner[part], len(fold.rows)) for part in parts]
        elif parts:
            whole = np.concatenate(parts)
            runs = np.unique(run[whole])
            members = tuple(_fold(rows, child[part], run[part], len(runs)) for part in parts)
            turns = _fewest_and_most(runs // (int(turn.max()) + 1), len(fold.rows))
            folds.append(
                Fold("repeat", child[whole], turns, fold.rows[owner[whole]] * (turn.max() + 1) + turn[whole], members)
            )
    return folds


def _keys(rows: CallArrays, forms: SimilarityHashes, fold: Fold, child: np.ndarray, likeness: FoldLevel) -> np.ndarray:
    """A number for each of a fold's children: those that are equal may be drawn as one."""
    if likeness is FoldLevel.nothing:
        return child.astype(np.uint64)
    form = forms.exact[child]  # what is inside operations is nothing, so this serves for them in any case
    if likeness is FoldLevel.alike:
        # Where what calls them differs inside, it was folded in spite of what they differ in.
        differs = fold.kind == "module" and len(np.unique(forms.exact[fold.rows])) > 1
        like = forms.skeleton if differs else forms.alike
        form = np.where(child < rows.calls, like[child], form)
    return mix(form ^ mix(rows.name[child].astype(np.uint64)))


def _fold(rows: CallArrays, chosen: np.ndarray, run: np.ndarray, runs: int) -> Fold:
    """A fold of calls, or of operations; for each of them in which run it was, of so many."""
    if chosen[0] < rows.calls:
        kind: Kind = "module"
    else:
        kind = "input" if rows.given[chosen[0]] else "operation"
    return Fold(kind, np.sort(chosen), _fewest_and_most(run, runs))


def _fewest_and_most(run: np.ndarray, runs: int) -> tuple[int, int]:
    if runs == 1:
        return len(run), len(run)
    _, count = np.unique(run, return_counts=True)
    return int(count.min()) if len(count) == runs else 0, int(count.max())
