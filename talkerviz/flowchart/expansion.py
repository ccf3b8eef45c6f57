"""Choose what is drawn with its inside: as deep as asked, as much as fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays
from talkerviz.flowchart.dataflow import Dataflow
from talkerviz.flowchart.folding import Fold, FoldLevel, inside, phases_of
from talkerviz.flowchart.group_ops import gather
from talkerviz.flowchart.model import View
from talkerviz.flowchart.similarity import SimilarityHashes

_LEAST_SHARE = 0.02


@dataclass(eq=False)
class VisibleNode:
    """A fold that is drawn: closed, or open with what stands in it.

    Attributes:
        fold: what is drawn.
        depth: how deep it stands; -1 for phases.
        members: what stands in it; None where it is closed.
    """

    fold: Fold
    depth: int
    members: list[VisibleNode] | None = None


def choose(rows: CallArrays, forms: SimilarityHashes, wiring: Dataflow, view: View) -> list[VisibleNode]:
    """The phases of a trace, opened as the view asks.

    Raises:
        ValueError: a pattern that no module fits.
    """
    asked = _asked(rows, view)
    tree = partial(_opened, rows, forms, wiring, view, asked)
    if not view.fold:
        return tree(FoldLevel.nothing)[0]
    drawn, whole = tree(FoldLevel.exact)
    return drawn if whole else tree(FoldLevel.alike)[0]


@dataclass(frozen=True, eq=False)
class _Asked:
    """Of each row, whether it must be open, and whether it must not."""

    open: np.ndarray
    closed: np.ndarray


def _asked(rows: CallArrays, view: View) -> _Asked:
    must, must_not = (_fitting(rows, patterns) for patterns in (view.open, view.close))
    must &= ~must_not
    # A pattern that fits a module fits all that is in it too, but means no operations inside of simple ones.
    caller = rows.parent[: rows.calls]
    simple = np.ones(rows.calls, dtype=bool)
    simple[caller[caller < rows.calls]] = False
    must[: rows.calls] &= ~(simple & must[caller])
    # What holds something that is to be opened must be open itself.
    for level in reversed(rows.levels):
        above = rows.parent[level][must[level] & (rows.parent[level] >= 0)]
        must[above] = ~must_not[above]
    return _Asked(must, must_not)


def _fitting(rows: CallArrays, patterns: Sequence[str]) -> np.ndarray:
    """Whether each row is a call of a module whose path fits a pattern."""
    fits = [path for pattern in patterns for path in rows.trace.matching_paths(pattern)]
    found = np.zeros(len(rows.parent), dtype=bool)
    found[: rows.calls] = rows.trace.calls["path"].isin(fits)
    return found


def _opened(
    rows: CallArrays, forms: SimilarityHashes, wiring: Dataflow, view: View, asked: _Asked, likeness: FoldLevel
) -> tuple[list[VisibleNode], bool]:
    """Open level by level, what is alike together, what takes longest first; and whether all that might be was."""
    top = [VisibleNode(phase, -1) for phase in phases_of(rows)]
    boxes, whole = 0, True
    too_large: list[tuple[VisibleNode, list[Fold]]] = []  # what would never fit
    waiting = top
    all_time = _time(rows, phases_of(rows))
    for least_time in (_LEAST_SHARE * all_time, 0):  # what takes next to no time has the room that is left
        level, waiting = waiting if whole else [], []
        while level:
            may_open: dict[object, list[tuple[VisibleNode, list[Fold]]]] = {}
            following: list[VisibleNode] = []
            for drawn in level:
                forced = drawn.fold.kind == "phase" or bool(asked.open[drawn.fold.rows].any())
                if not forced and not _may_open(rows, view, asked, drawn):
                    continue
                found = inside(rows, forms, wiring, drawn.fold, likeness)
                if drawn.fold.kind == "phase" and likeness is not FoldLevel.nothing:
                    found = gather(rows, found)
                if forced and found:
                    boxes += _size(found) - (drawn.fold.kind != "phase")
                    following += _open(drawn, found)
                elif found:
                    # A module in prefill and in decode is open in both or in neither.
                    twin = (int(rows.name[drawn.fold.rows[0]]), int(rows.kind[drawn.fold.rows[0]]))
                    may_open.setdefault(twin, []).append((drawn, found))
            timed = [(_time(rows, [drawn.fold for drawn, _ in twins]), twins) for twins in may_open.values()]
            for time, twins in sorted(timed, key=lambda pair: -pair[0]):
                more = sum(_size(found) - 1 for _, found in twins)
                if time < least_time:
                    waiting += [drawn for drawn, _ in twins]
                elif boxes + more > view.box_limit:
                    whole = False
                    too_large += twins if more > view.box_limit else []
                else:
                    boxes += more
                    for drawn, found in twins:
                        following += _open(drawn, found)
            level = following
    if too_large and boxes < view.box_limit // 2:
        # Better a part of it than a box that says nothing.
        drawn, found = max(too_large, key=lambda pair: _time(rows, [pair[0].fold]))
        boxes += _size(found) - 1
        _open(drawn, found)
        boxes -= _leave_out(rows, drawn, boxes - view.box_limit)
    for phase in sorted(top, key=lambda phase: -len(phase.members or ())):
        if boxes > view.box_limit and not view.open:
            boxes -= _leave_out(rows, phase, boxes - view.box_limit)
    return top, whole and boxes <= view.box_limit


def _may_open(rows: CallArrays, view: View, asked: _Asked, drawn: VisibleNode) -> bool:
    return (
        (view.depth is None or drawn.depth < view.depth)
        and not bool(asked.closed[drawn.fold.rows].any())
        and has_inner_calls(rows, drawn.fold)
    )


def _size(found: list[Fold]) -> int:
    return sum(len(fold.members) or 1 for fold in found)


def _open(drawn: VisibleNode, found: list[Fold]) -> list[VisibleNode]:
    """Give what is drawn its members; returns those that may be opened in turn."""
    drawn.members = [VisibleNode(fold, drawn.depth + 1) for fold in found]
    following = []
    for member in drawn.members:
        if member.fold.kind == "repeat":
            member.members = [VisibleNode(fold, member.depth) for fold in member.fold.members]
            following += member.members
        else:
            following.append(member)
    return following


def has_inner_calls(rows: CallArrays, fold: Fold) -> bool:
    """Whether a fold is of modules that called other modules."""
    return fold.kind == "module" and bool((rows.children_of(fold.rows)[0] < rows.calls).any())


def every(members: Sequence[VisibleNode]) -> Iterator[VisibleNode]:
    """All that is drawn, whatever it stands in."""
    for drawn in members:
        yield drawn
        yield from every(drawn.members or ())


def _time(rows: CallArrays, folds: Sequence[Fold]) -> float:
    """Nanoseconds in all calls of some folds, or inside phases; their number where times were not measured."""
    own = np.concatenate([fold.rows for fold in folds]) if folds else np.empty(0, dtype=np.int64)
    calls = np.concatenate([own, rows.children_of(own[own >= rows.first_phase])[0]])
    times = rows.host_ns[calls[calls < rows.calls]]
    return float(len(times) if np.isnan(times).any() else times.sum())


def _leave_out(rows: CallArrays, group: VisibleNode, excess: int) -> int:
    """Draw those members of a group that took the shortest as a box for each stretch; returns how many that saves."""
    members = group.members or []
    closed = np.array([place for place, member in enumerate(members) if member.members is None], dtype=np.int64)
    if excess <= 0 or len(closed) < 2:
        return 0
    times = np.array([_time(rows, [members[place].fold]) for place in closed])
    typical = float(np.median(times))
    if np.quantile(times, 0.9) < 1.5 * typical:
        # Which of them took the shortest is chance: the last are left out, but none that takes much longer.
        times = np.where(times < 2 * typical, -closed, times)
    left_out = np.zeros(len(members), dtype=bool)
    saved = 0
    for place in closed[np.argsort(times, kind="stable")]:
        if saved >= excess:
            break
        saved += int(left_out[max(place - 1, 0)]) + int(left_out[min(place + 1, len(members) - 1)])
        left_out[place] = True
    stretches = np.split(np.arange(len(members)), np.flatnonzero(np.diff(left_out)) + 1)
    group.members = []
    for stretch in stretches:
        drawn = [members[place] for place in stretch]
        if left_out[stretch[0]] and len(drawn) > 1:
            together = np.sort(np.concatenate([one.fold.rows for one in drawn]))
            drawn = [VisibleNode(replace(drawn[0].fold, kind="more", rows=together), 0)]
        group.members += drawn
    return saved
