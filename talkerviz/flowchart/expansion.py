"""Expansion of modules: as deep as asked for, as much as fits into the box limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from talkerviz.flowchart.call_arrays import CallArrays
from talkerviz.flowchart.dataflow import Dataflow
from talkerviz.flowchart.folding import Fold, FoldLevel, fold_children, phase_folds
from talkerviz.flowchart.group_ops import group_ops
from talkerviz.flowchart.model import View
from talkerviz.flowchart.similarity import SimilarityHashes

_MIN_TIME_SHARE = 0.02  # of all time; modules with less are expanded only with the room that is left


@dataclass(eq=False)
class VisibleNode:
    """Node of the visible tree: a fold, collapsed or expanded.

    Attributes:
        fold: rows of the node.
        depth: depth of the node; -1 for phases.
        members: children of an expanded node; None for a collapsed one.
    """

    fold: Fold
    depth: int
    members: list[VisibleNode] | None = None


def expand(rows: CallArrays, hashes: SimilarityHashes, dataflow: Dataflow, view: View) -> list[VisibleNode]:
    """Expand the phases of a trace as a view asks for.

    Similar modules are folded only if the chart does not fit with identical ones folded.

    Raises:
        ValueError: a pattern that matches no module.
    """
    requests = _requests(rows, view)
    expand_at = partial(_expand_at, rows, hashes, dataflow, view, requests)
    if not view.fold:
        return expand_at(FoldLevel.NOTHING)[0]
    phases, complete = expand_at(FoldLevel.EXACT)
    return phases if complete else expand_at(FoldLevel.ALIKE)[0]


@dataclass(frozen=True, eq=False)
class _Requests:
    """Masks of the rows that must be expanded, and of those that must not."""

    open: np.ndarray
    closed: np.ndarray


def _requests(rows: CallArrays, view: View) -> _Requests:
    must, must_not = (_matching(rows, patterns) for patterns in (view.open, view.close))
    must &= ~must_not
    # A pattern matches children of a matching module too, but does not mean the operations inside leaf modules.
    parent = rows.parent[: rows.calls]
    is_leaf = np.ones(rows.calls, dtype=bool)
    is_leaf[parent[parent < rows.calls]] = False
    must[: rows.calls] &= ~(is_leaf & must[parent])
    # Ancestors of an expanded module are expanded.
    for level in reversed(rows.levels):
        parents = rows.parent[level][must[level] & (rows.parent[level] >= 0)]
        must[parents] = ~must_not[parents]
    return _Requests(must, must_not)


def _matching(rows: CallArrays, patterns: Sequence[str]) -> np.ndarray:
    """Mark the calls of modules whose path matches a pattern."""
    paths = [path for pattern in patterns for path in rows.trace.matching_paths(pattern)]
    matches = np.zeros(len(rows.parent), dtype=bool)
    matches[: rows.calls] = rows.trace.calls["path"].isin(paths)
    return matches


def _expand_at(
    rows: CallArrays,
    hashes: SimilarityHashes,
    dataflow: Dataflow,
    view: View,
    requests: _Requests,
    fold_level: FoldLevel,
) -> tuple[list[VisibleNode], bool]:
    """Expand level by level: twins together, the slowest first.

    Returns:
        The phases, and whether everything that may be expanded was.
    """
    top = [VisibleNode(phase, -1) for phase in phase_folds(rows)]
    boxes, complete = 0, True
    too_large: list[tuple[VisibleNode, list[Fold]]] = []  # more children than the box limit
    waiting = top
    all_time = _time(rows, phase_folds(rows))
    for least_time in (_MIN_TIME_SHARE * all_time, 0):  # modules with little time get the room that is left
        level, waiting = waiting if complete else [], []
        while level:
            may_open: dict[object, list[tuple[VisibleNode, list[Fold]]]] = {}
            following: list[VisibleNode] = []
            for node in level:
                forced = node.fold.kind == "phase" or bool(requests.open[node.fold.rows].any())
                if not forced and not _may_open(rows, view, requests, node):
                    continue
                children = fold_children(rows, hashes, dataflow, node.fold, fold_level)
                if node.fold.kind == "phase" and fold_level is not FoldLevel.NOTHING:
                    children = group_ops(rows, children)
                if forced and children:
                    boxes += _size(children) - (node.fold.kind != "phase")
                    following += _open(node, children)
                elif children:
                    # A module in prefill and in decode is expanded in both or in neither.
                    twin = (int(rows.name[node.fold.rows[0]]), int(rows.kind[node.fold.rows[0]]))
                    may_open.setdefault(twin, []).append((node, children))
            timed = [(_time(rows, [node.fold for node, _ in twins]), twins) for twins in may_open.values()]
            for time, twins in sorted(timed, key=lambda pair: -pair[0]):
                more = sum(_size(children) - 1 for _, children in twins)
                if time < least_time:
                    waiting += [node for node, _ in twins]
                elif boxes + more > view.box_limit:
                    complete = False
                    too_large += twins if more > view.box_limit else []
                else:
                    boxes += more
                    for node, children in twins:
                        following += _open(node, children)
            level = following
    if too_large and boxes < view.box_limit // 2:
        # Part of a module is better than a nearly empty chart.
        node, children = max(too_large, key=lambda pair: _time(rows, [pair[0].fold]))
        boxes += _size(children) - 1
        _open(node, children)
        boxes -= _leave_out(rows, node, boxes - view.box_limit)
    for phase in sorted(top, key=lambda phase: -len(phase.members or ())):
        if boxes > view.box_limit and not view.open:
            boxes -= _leave_out(rows, phase, boxes - view.box_limit)
    return top, complete and boxes <= view.box_limit


def _may_open(rows: CallArrays, view: View, requests: _Requests, node: VisibleNode) -> bool:
    return (
        (view.depth is None or node.depth < view.depth)
        and not bool(requests.closed[node.fold.rows].any())
        and has_inner_calls(rows, node.fold)
    )


def _size(children: list[Fold]) -> int:
    return sum(len(fold.members) or 1 for fold in children)


def _open(node: VisibleNode, children: list[Fold]) -> list[VisibleNode]:
    """Expand a node; returns the children that may be expanded in turn."""
    node.members = [VisibleNode(fold, node.depth + 1) for fold in children]
    following = []
    for member in node.members:
        if member.fold.kind == "repeat":
            member.members = [VisibleNode(fold, member.depth) for fold in member.fold.members]
            following += member.members
        else:
            following.append(member)
    return following


def has_inner_calls(rows: CallArrays, fold: Fold) -> bool:
    """Return whether a fold is of modules that called other modules."""
    return fold.kind == "module" and bool((rows.children_of(fold.rows)[0] < rows.calls).any())


def walk(members: Sequence[VisibleNode]) -> Iterator[VisibleNode]:
    """Yield all nodes of a visible tree, parents first."""
    for node in members:
        yield node
        yield from walk(node.members or ())


def _time(rows: CallArrays, folds: Sequence[Fold]) -> float:
    """Sum the time of the calls in some folds, in nanoseconds; the number of calls if times were not measured."""
    own = np.concatenate([fold.rows for fold in folds]) if folds else np.empty(0, dtype=np.int64)
    calls = np.concatenate([own, rows.children_of(own[own >= rows.first_phase])[0]])
    times = rows.host_ns[calls[calls < rows.calls]]
    return float(len(times) if np.isnan(times).any() else times.sum())


def _leave_out(rows: CallArrays, group: VisibleNode, excess: int) -> int:
    """Merge the shortest members of a group, a box a stretch of neighbours; returns the number of boxes saved."""
    members = group.members or []
    closed = np.array([index for index, member in enumerate(members) if member.members is None], dtype=np.int64)
    if excess <= 0 or len(closed) < 2:
        return 0
    times = np.array([_time(rows, [members[index].fold]) for index in closed])
    typical = float(np.median(times))
    if np.quantile(times, 0.9) < 1.5 * typical:
        # With nearly equal times the shortest are chance: the last ones are merged, but none that takes twice as long.
        times = np.where(times < 2 * typical, -closed, times)
    left_out = np.zeros(len(members), dtype=bool)
    saved = 0
    for index in closed[np.argsort(times, kind="stable")]:
        if saved >= excess:
            break
        saved += int(left_out[max(index - 1, 0)]) + int(left_out[min(index + 1, len(members) - 1)])
        left_out[index] = True
    stretches = np.split(np.arange(len(members)), np.flatnonzero(np.diff(left_out)) + 1)
    group.members = []
    for stretch in stretches:
        nodes = [members[index] for index in stretch]
        if left_out[stretch[0]] and len(nodes) > 1:
            merged = np.sort(np.concatenate([node.fold.rows for node in nodes]))
            nodes = [VisibleNode(replace(nodes[0].fold, kind="more", rows=merged), 0)]
        group.members += nodes
    return saved
