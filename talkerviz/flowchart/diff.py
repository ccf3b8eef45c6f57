"""Diff of two flowcharts: added, removed and changed boxes and arrows."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import fields, replace

import numpy as np

from talkerviz.flowchart.builder import Prepared, draw_prepared, prepare, title_parts
from talkerviz.flowchart.collapse import collapse_groups
from talkerviz.flowchart.model import Box, Change, Edge, Edges, Graph, Group, Member, View, boxes_in, heading
from talkerviz.flowchart.similarity import SimilarityHashes, mix
from talkerviz.trace import TraceRecord
from talkerviz.trace.align import align, rename_paths, without_modules

_NUMBERS = re.compile(r"[\d,…-]*\d[\d,…-]*")
_COMPARED = ("name", "class_name", "shapes", "repeats")


def diff_graph(before: TraceRecord, after: TraceRecord, edges: Edges | None = None) -> Graph:
    """Merge the fully expanded flowcharts of two runs; modules are paired by `align`, without wrappers.

    Repeated modules are one box if they are equal in both runs. Classes that differ only in a prefix,
    `Qwen3OmniMoeTalkerModel` and `TalkerModel`, are equal, and the length of a run is no difference. Times are those of
    the second run.

    Args:
        before: the first run.
        after: the second run.
        edges: edges, as in `View`; None is flow if both runs have it.

    Returns:
        The merged graph; its note counts the modules and operations that differ.

    Raises:
        ValueError: as `build_graph`.
    """
    both = before.flow is not None and after.flow is not None
    view = View(max_nodes=sys.maxsize, edges=edges or ("flow" if both else "calls"))
    ones, twos = (
        prepare(rename_paths(without_modules(trace, side.wrappers), side.names), view.edges)
        for trace, side in zip((before, after), align(before, after), strict=True)
    )
    graphs = draw_prepared(_folding_as(ones, twos), view).graph, draw_prepared(_folding_as(twos, ones), view).graph
    ids: tuple[dict[str, str], dict[str, str]] = {}, {}
    members = _merged(graphs[0].members, graphs[1].members, ids)
    merged = replace(
        graphs[1],
        title=_title(before, after),
        members=members,
        edges=_merged_edges(graphs, ids, members),
    )
    count: Counter[Change | None] = Counter()
    for box in changes(merged):
        count[box.change] += box.modules
    counts = ", ".join(f"{count[kind]:,} {kind}" for kind in ("added", "removed", "changed") if count[kind])
    return replace(merged, notes=(counts or "No difference.",))


def _folding_as(prepared: Prepared, other: Prepared) -> Prepared:
    """Let modules fold only if their counterparts in the other run are equal too."""
    mine, theirs = ([str(path) for path in each.trace.calls["path"].cat.categories] for each in (prepared, other))
    hashes = {}
    for kind in (field.name for field in fields(SimilarityHashes)):
        by_path: dict[str, set[int]] = {}
        values = getattr(other.hashes, kind)[: other.rows.calls]
        for code, value in zip(other.rows.path.tolist(), values.tolist(), strict=True):
            by_path.setdefault(theirs[code], set()).add(value)
        numbers: dict[frozenset[int], int] = {}
        of_path = [numbers.setdefault(frozenset(by_path.get(path, ())), len(numbers)) for path in mine]
        own = getattr(prepared.hashes, kind).copy()
        own[: prepared.rows.calls] ^= mix(np.array(of_path, dtype=np.uint64)[prepared.rows.path])
        hashes[kind] = mix(own)
    return replace(prepared, hashes=SimilarityHashes(**hashes))


def _title(before: TraceRecord, after: TraceRecord) -> str:
    ones, twos = title_parts(before), title_parts(after)
    pairs = [(ones.get(what, "–"), twos.get(what, "–")) for what in dict.fromkeys([*ones, *twos])]
    return ", ".join(one if one == two or _same("class_name", one, two) else f"{one} ⇒ {two}" for one, two in pairs)


def collapse_unchanged(graph: Graph, max_boxes: int) -> Graph:
    """Collapse unchanged groups of a diff, then the deepest other groups until the boxes fit."""
    touched = {end for edge in graph.edges if edge.change for end in (edge.source, edge.target)}
    groups = [group for group, _ in _by_depth(graph.members)]
    same = {group.id for group in groups if not any(_changed(inner, touched) for inner in group.members)}
    graph = collapse_groups(graph, same)
    depth = max((level for _, level in _by_depth(graph.members)), default=0)
    while len(graph.boxes) > max_boxes and depth > 0:
        deepest = {group.id for group, level in _by_depth(graph.members) if level == depth}
        graph = collapse_groups(replace(graph, members=_marked(graph.members, deepest, touched)), deepest)
        depth -= 1
    return graph


def _marked(members: Sequence[Member], ids: Set[str], touched: Set[str]) -> tuple[Member, ...]:
    """Mark groups as changed if any of their members is."""
    marked: list[Member] = []
    for member in members:
        if isinstance(member, Group) and member.id in ids and member.box.change is None and _changed(member, touched):
            box = replace(member.box, change="changed", details=("differs inside", *member.box.details))
            marked.append(replace(member, box=box))
        elif isinstance(member, Group):
            marked.append(replace(member, members=_marked(member.members, ids, touched)))
        else:
            marked.append(member)
    return tuple(marked)


def changes(graph: Graph) -> list[Box]:
    """Return changed boxes and headings, without the members of groups that only one run has."""
    changed: list[Box] = []

    def look(members: Sequence[Member]) -> None:
        for member in members:
            box = heading(member)
            if box.change and box.kind != "phase":
                changed.append(box)
            if isinstance(member, Group) and box.change in (None, "changed"):
                look(member.members)

    look(graph.members)
    return changed


def _merged(
    before: Sequence[Member], after: Sequence[Member], ids: tuple[dict[str, str], dict[str, str]]
) -> tuple[Member, ...]:
    """Merge the members of a group of both graphs, in the order of the second; fills `ids` with the new ids."""
    paths = {heading(member).path for member in before} & {heading(member).path for member in after}
    ones, twos = _keyed(before, paths), _keyed(after, paths)
    order = list(twos)
    position = 0
    for key in ones:  # a removed member keeps its predecessor
        if key in twos:
            position = order.index(key) + 1
        else:
            order.insert(position, key)
            position += 1
    merged: list[Member] = []
    for key in order:
        one, two = ones.get(key), twos.get(key)
        if one is not None and two is not None:
            merged.append(_both(one, two, ids))
        elif two is not None:
            merged.append(_only(two, "added", "b", ids[1]))
        elif one is not None:
            merged.append(_only(one, "removed", "a", ids[0]))
    return tuple(merged)


def _keyed(members: Sequence[Member], paths: Set[str]) -> dict[object, Member]:
    """Key members by kind, path if both runs have it or else name without numbers, and occurrence."""
    times: Counter[object] = Counter()
    keyed: dict[object, Member] = {}
    for member in members:
        box = heading(member)
        of_both = box.kind == "module" and box.path in paths
        name = (box.kind, box.path if of_both else _NUMBERS.sub("#", box.name) if box.kind == "module" else box.name)
        keyed[(name, times[name])] = member
        times[name] += 1
    return keyed


def _both(one: Member, two: Member, ids: tuple[dict[str, str], dict[str, str]]) -> Member:
    before, after = heading(one), heading(two)
    own = f"b{after.id}"
    ids[0][before.id] = ids[1][after.id] = own
    box = replace(after, id=own)
    differs = [name for name in _COMPARED if not _same(name, getattr(before, name), getattr(after, name))]
    if before.kind == "phase":
        differs = []  # the number of frames is no difference between models
    if differs:
        texts = {name: f"{getattr(before, name) or '–'} ⇒ {getattr(after, name) or '–'}" for name in differs}
        box = replace(box, change="changed", **texts)  # type: ignore[arg-type]
    if isinstance(one, Group) and isinstance(two, Group):
        return Group(box, _merged(one.members, two.members, ids))
    if isinstance(two, Group):
        return Group(replace(box, change="changed"), _merged((), two.members, ids))
    if isinstance(one, Group):
        return Group(replace(box, change="changed"), _merged(one.members, (), ids))
    return box


def _same(field: str, before: str, after: str) -> bool:
    if field == "class_name" and before and after:
        return before.endswith(after) or after.endswith(before)
    if field == "repeats" and all(not text or text.startswith(("frame", "0–1×")) for text in (before, after)):
        return True  # the number of frames differs
    return before == after


def _only(member: Member, change: Change, prefix: str, ids: dict[str, str]) -> Member:
    box = heading(member)
    ids[box.id] = f"{prefix}{box.id}"
    drawn = replace(box, id=ids[box.id], change=change)
    if isinstance(member, Box):
        return drawn
    return Group(drawn, tuple(_only(inner, change, prefix, ids) for inner in member.members))


def _merged_edges(
    graphs: tuple[Graph, Graph], ids: tuple[dict[str, str], dict[str, str]], members: Sequence[Member]
) -> tuple[Edge, ...]:
    """Merge arrows, without those of boxes that are expanded in the other graph, whose members have arrows."""
    boxes = {box.id for box in boxes_in(members)}
    ones, twos = (
        {
            (of[edge.source], of[edge.target], edge.carried): edge
            for edge in graph.edges
            if {of[edge.source], of[edge.target]} <= boxes
        }
        for graph, of in zip(graphs, ids, strict=True)
    )
    merged = []
    for key in dict.fromkeys([*twos, *ones]):
        edge = twos.get(key) or ones[key]
        change: Change | None = None if key in ones and key in twos else "added" if key in twos else "removed"
        merged.append(replace(edge, source=key[0], target=key[1], change=change))
    return tuple(merged)


def _changed(member: Member, touched: Set[str]) -> bool:
    if isinstance(member, Group):
        return member.box.change is not None or any(_changed(inner, touched) for inner in member.members)
    return member.change is not None or member.id in touched


def _by_depth(members: Sequence[Member], depth: int = 0) -> Iterator[tuple[Group, int]]:
    for member in members:
        if isinstance(member, Group):
            yield member, depth
            yield from _by_depth(member.members, depth + 1)
