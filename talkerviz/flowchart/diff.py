"""Two runs in one picture: what only one of them has, and what differs."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace

from talkerviz.flowchart.builder import build_graph, title_parts
from talkerviz.flowchart.collapse import close_groups
from talkerviz.flowchart.model import Box, Change, Edge, Graph, Group, Member, boxes_in, heading
from talkerviz.flowchart.options import Edges, View
from talkerviz.trace import TraceRecord

_NUMBERS = re.compile(r"[\d,…-]*\d[\d,…-]*")
_COMPARED = ("name", "class_name", "shapes", "repeats")


def diff_graph(before: TraceRecord, after: TraceRecord, edges: Edges | None = None) -> Graph:
    """One graph of two runs with all that is in them, boxes matched by name and place.

    A class that only has another prefix, `Qwen3OmniMoeTalkerModel` and `TalkerModel`, is no difference, nor is a longer
    run. Times are those of the second run.

    Args:
        before: the first run.
        after: the second.
        edges: as of a `View`; by default flow where both runs have it.

    Raises:
        ValueError: as `build_graph`.
    """
    both = before.flow is not None and after.flow is not None
    view = View(max_nodes=sys.maxsize, edges=edges or ("flow" if both else "calls"))
    graphs = build_graph(before, view), build_graph(after, view)
    ids: tuple[dict[str, str], dict[str, str]] = {}, {}
    members = _merged(graphs[0].members, graphs[1].members, ids)
    merged = replace(
        graphs[1],
        title=_title(before, after),
        members=members,
        edges=_merged_edges(graphs, ids, members),
    )
    count = Counter(box.change for box in changes(merged))
    said = ", ".join(f"{count[kind]:,} {kind}" for kind in ("added", "removed", "changed") if count[kind])
    return replace(merged, notes=(said or "No difference.",))


def _title(before: TraceRecord, after: TraceRecord) -> str:
    ones, twos = title_parts(before), title_parts(after)
    pairs = [(ones.get(what, "–"), twos.get(what, "–")) for what in dict.fromkeys([*ones, *twos])]
    return ", ".join(one if one == two or _same("class_name", one, two) else f"{one} ⇒ {two}" for one, two in pairs)


def without_what_is_same(graph: Graph, most_boxes: int) -> Graph:
    """The graph with groups closed in which nothing differs, then others, the deepest first, until there is room."""
    touched = {end for edge in graph.edges if edge.change for end in (edge.source, edge.target)}
    groups = [group for group, _ in _by_depth(graph.members)]
    same = {group.id for group in groups if not any(_changed(inner, touched) for inner in group.members)}
    graph = close_groups(graph, same)
    depth = max((place for _, place in _by_depth(graph.members)), default=0)
    while len(graph.boxes) > most_boxes and depth > 0:
        deepest = {group.id for group, place in _by_depth(graph.members) if place == depth}
        graph = close_groups(replace(graph, members=_marked(graph.members, deepest, touched)), deepest)
        depth -= 1
    return graph


def _marked(members: Sequence[Member], ids: Set[str], touched: Set[str]) -> tuple[Member, ...]:
    """Some groups as changed ones, if anything in them is."""
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
    """Boxes and headings that only one run has or that differ, without what stands in a group that only one has."""
    found: list[Box] = []

    def look(members: Sequence[Member]) -> None:
        for member in members:
            box = heading(member)
            if box.change and box.kind != "phase":
                found.append(box)
            if isinstance(member, Group) and box.change in (None, "changed"):
                look(member.members)

    look(graph.members)
    return found


def _merged(
    before: Sequence[Member], after: Sequence[Member], ids: tuple[dict[str, str], dict[str, str]]
) -> tuple[Member, ...]:
    """Members of one place in both graphs, in the order of the second; notes under which id each box is drawn."""
    ones, twos = _keyed(before), _keyed(after)
    order = list(twos)
    place = 0
    for key in ones:  # what only the first has stands after what it stood after
        if key in twos:
            place = order.index(key) + 1
        else:
            order.insert(place, key)
            place += 1
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


def _keyed(members: Sequence[Member]) -> dict[object, Member]:
    """Members by kind and name, whatever the numbers in it are, and how many of the same stood before."""
    times: Counter[object] = Counter()
    found: dict[object, Member] = {}
    for member in members:
        box = heading(member)
        name = (box.kind, _NUMBERS.sub("#", box.name) if box.kind == "module" else box.name)
        found[(name, times[name])] = member
        times[name] += 1
    return found


def _both(one: Member, two: Member, ids: tuple[dict[str, str], dict[str, str]]) -> Member:
    before, after = heading(one), heading(two)
    own = f"b{after.id}"
    ids[0][before.id] = ids[1][after.id] = own
    box = replace(after, id=own)
    differs = [name for name in _COMPARED if not _same(name, getattr(before, name), getattr(after, name))]
    if before.kind == "phase":
        differs = []  # a longer run is not another model
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


def _same(what: str, before: str, after: str) -> bool:
    if what == "class_name" and before and after:
        return before.endswith(after) or after.endswith(before)
    if what == "repeats" and all(not text or text.startswith(("frame", "0–1×")) for text in (before, after)):
        return True  # one run has another number of frames
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
    """The arrows of both, but none to what is a box in one graph and open in the other: its inside has its own."""
    boxes = {box.id for box in boxes_in(members)}
    ones, twos = (
        {
            (of[edge.source], of[edge.target], edge.carried): edge
            for edge in graph.edges
            if {of[edge.source], of[edge.target]} <= boxes
        }
        for graph, of in zip(graphs, ids, strict=True)
    )
    found = []
    for key in dict.fromkeys([*twos, *ones]):
        edge = twos.get(key) or ones[key]
        change: Change | None = None if key in ones and key in twos else "added" if key in twos else "removed"
        found.append(replace(edge, source=key[0], target=key[1], change=change))
    return tuple(found)


def _changed(member: Member, touched: Set[str]) -> bool:
    if isinstance(member, Group):
        return member.box.change is not None or any(_changed(inner, touched) for inner in member.members)
    return member.change is not None or member.id in touched


def _by_depth(members: Sequence[Member], depth: int = 0) -> Iterator[tuple[Group, int]]:
    for member in members:
        if isinstance(member, Group):
            yield member, depth
            yield from _by_depth(member.members, depth + 1)
