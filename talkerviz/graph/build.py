"""From a trace to a picture: fold it, open what is to be seen, draw the arrows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from talkerviz.graph.choose import Drawn, calls_others, choose, every
from talkerviz.graph.describe import describe, is_check
from talkerviz.graph.edges import BEFORE, edges_of
from talkerviz.graph.forms import Forms, forms_of
from talkerviz.graph.graph import Box, Edge, Graph, Group
from talkerviz.graph.rows import Rows, rows_of
from talkerviz.graph.view import EDGES, View
from talkerviz.graph.wiring import wiring_of
from talkerviz.trace import Trace

Member = Box | Group


def build_graph(trace: Trace, view: View = View()) -> Graph:  # noqa: B008  (it is frozen)
    """Draw up the picture of a trace, or of what `Trace.select` left of it.

    Raises:
        ValueError: a pattern that no module fits, unknown edges, or flow where none was recorded.
    """
    return draw(trace, view).graph


@dataclass(frozen=True)
class Drawing:
    """A picture, and what can be opened in it.

    Attributes:
        graph: the picture.
        closed: by the id of each closed box of modules that called others, the rows of its calls in the trace.
    """

    graph: Graph
    closed: Mapping[str, np.ndarray]


def draw(trace: Trace, view: View) -> Drawing:
    """`build_graph`, and the calls that are not seen in it."""
    if view.edges not in (None, *EDGES):
        raise ValueError(f"unknown edges {view.edges!r}: choose from {', '.join(EDGES)}")
    if view.edges == "flow" and trace.flow is None:
        raise ValueError(
            "edges 'flow': this trace was recorded without the flow of tensors; record it without --no-flow"
        )
    flow = trace.flow is not None and view.edges != "calls"
    rows = rows_of(trace, flow)
    wiring = wiring_of(rows)
    forms = forms_of(rows)
    top = choose(rows, forms, wiring, view)
    ids: dict[int, str] = {}
    members = tuple(_member(rows, forms, drawn, ids) for drawn in top)
    edges = edges_of(rows, wiring, top, ids, flow)
    if any(edge.source == BEFORE for edge in edges):
        members = (Box(BEFORE, "input", "what ran before"), *members)
    checks = {ids[id(drawn)] for drawn in every(top) if drawn.members is None and is_check(rows, drawn.fold)}
    members, edges = _without_dead_ends(members, edges, checks)
    if len(members) == 1 and isinstance(members[0], Group) and _says_nothing(members[0].box):
        members = members[0].members
    notes: tuple[str, ...] = ()
    if not flow and view.edges is None and len(trace.calls):
        notes += ("Arrows are the order of calls: the flow of tensors was not recorded.",)
    timed = bool(trace.calls["host_ns"].notna().all())
    closed = {
        ids[id(drawn)]: drawn.fold.rows
        for drawn in every(top)
        if drawn.members is None and calls_others(rows, drawn.fold)
    }
    return Drawing(Graph(_title(trace), members, edges, flow, timed, notes), closed)


def _member(rows: Rows, forms: Forms, drawn: Drawn, ids: dict[int, str]) -> Member:
    own = ids[id(drawn)] = f"n{len(ids)}"
    box = describe(rows, forms, drawn.fold, own)
    if drawn.members is None:
        return box
    return Group(box, tuple(_member(rows, forms, member, ids) for member in drawn.members))


def _without_dead_ends(
    members: tuple[Member, ...], edges: tuple[Edge, ...], checks: Set[str]
) -> tuple[tuple[Member, ...], tuple[Edge, ...]]:
    """Without operations that nothing reads, if they are inside modules or checks, and without inputs like that."""
    while True:
        read = {edge.source for edge in edges}
        dead = {box.id for box in _may_be_dead(members, checks, inside=False) if box.id not in read}
        if not dead:
            return members, edges
        members = _keep(members, dead)
        edges = tuple(edge for edge in edges if edge.target not in dead)


def _may_be_dead(members: Sequence[Member], checks: Set[str], inside: bool) -> list[Box]:
    found = []
    for member in members:
        if isinstance(member, Group):
            found += _may_be_dead(member.members, checks, inside or member.box.kind == "module")
        elif member.kind == "input" or (member.kind == "operation" and (inside or member.id in checks)):
            found.append(member)
    return found


def _keep(members: tuple[Member, ...], dead: set[str]) -> tuple[Member, ...]:
    kept: list[Member] = []
    for member in members:
        if isinstance(member, Group):
            kept.append(replace(member, members=_keep(member.members, dead)))
        elif member.id not in dead:
            kept.append(member)
    return tuple(kept)


def _says_nothing(phase: Box) -> bool:
    return phase.name == "forward" and not phase.repeats.endswith("frames")


def _title(trace: Trace) -> str:
    facts = trace.facts
    parts = [
        facts.get("model", "model"),
        facts.get("preset"),
        facts.get("impl"),
        facts.get("device"),
        facts.get("dtype"),
    ]
    return ", ".join(str(part) for part in parts if part)
