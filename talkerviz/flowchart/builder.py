"""From a trace to a picture: fold it, open what is to be seen, draw the arrows."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import numpy as np

from talkerviz.flowchart.box_labels import describe, is_for_itself
from talkerviz.flowchart.call_arrays import CallArrays, call_arrays
from talkerviz.flowchart.dataflow import Dataflow, build_dataflow
from talkerviz.flowchart.edges import AFTER, BEFORE, build_edges
from talkerviz.flowchart.expansion import VisibleNode, choose, every, has_inner_calls
from talkerviz.flowchart.model import EDGES, Box, Edge, Graph, Group, Member, View, boxes_in
from talkerviz.flowchart.similarity import SimilarityHashes, similarity_hashes
from talkerviz.trace import TraceRecord
from talkerviz.trace.runs import as_one_run


def build_graph(trace: TraceRecord, view: View = View()) -> Graph:  # noqa: B008  (it is frozen)
    """Draw up the picture of a trace, or of what `Trace.select` left of it.

    Raises:
        ValueError: a pattern that no module fits, unknown edges, or flow where none was recorded.
    """
    return draw(trace, view).graph


@dataclass(frozen=True)
class Drawing:
    """A picture, and what can be opened in it. CallArrays are those of `as_one_run` of the trace.

    Attributes:
        graph: the picture.
        calls: by the id of each box and group, the rows in the trace of the calls that it stands for.
        closed: the ids of closed boxes of modules that called others.
    """

    graph: Graph
    calls: Mapping[str, np.ndarray]
    closed: Set[str]


def draw(trace: TraceRecord, view: View) -> Drawing:
    """`build_graph`, and the calls that are not seen in it."""
    return draw_prepared(prepare(trace, view.edges), view)


@dataclass(frozen=True)
class Prepared:
    """A trace as it is drawn from, whatever is to be seen of it.

    Attributes:
        trace: one run.
        flow: whether edges are the flow of tensors.
        rows, wiring, forms: of the trace.
    """

    trace: TraceRecord
    flow: bool
    rows: CallArrays
    wiring: Dataflow
    forms: SimilarityHashes


def prepare(trace: TraceRecord, edges: str | None) -> Prepared:
    """What takes the longest of a drawing, once for all views with such edges."""
    if edges not in (None, *EDGES):
        raise ValueError(f"unknown edges {edges!r}: choose from {', '.join(EDGES)}")
    if edges == "flow" and trace.flow is None:
        raise ValueError(
            "edges 'flow': this trace was recorded without the flow of tensors; record it without --no-flow"
        )
    trace = as_one_run(trace)
    flow = trace.flow is not None and edges != "calls"
    rows = call_arrays(trace, flow)
    return Prepared(trace, flow, rows, build_dataflow(rows), similarity_hashes(rows))


def draw_prepared(prepared: Prepared, view: View) -> Drawing:
    """The drawing of a trace that was prepared for the view's edges."""
    trace, flow, rows = prepared.trace, prepared.flow, prepared.rows
    wiring, forms = prepared.wiring, prepared.forms
    top = [phase for phase in choose(rows, forms, wiring, view) if phase.members]  # some are constants alone
    ids: dict[int, str] = {}
    members = tuple(_member(rows, forms, drawn, ids) for drawn in top)
    edges = build_edges(rows, wiring, top, ids, flow)
    if len(members) == 1 and isinstance(members[0], Group) and _says_nothing(members[0].box):
        members = members[0].members
    if any(edge.source == BEFORE for edge in edges):
        members = (Box(BEFORE, "input", "what ran before"), *members)
    if any(edge.target == AFTER for edge in edges):
        members = (*members, Box(AFTER, "input", "what ran after"))
    kept = {ids[id(drawn)] for drawn in every(top) if drawn.members is None and is_for_itself(rows, drawn.fold)}
    members, edges = _without_dead_ends(members, edges, kept | {AFTER})
    notes: tuple[str, ...] = ()
    if not flow and view.edges is None and len(trace.calls):
        notes += ("Arrows are the order of calls: the flow of tensors was not recorded.",)
    if "mean_of_runs" in trace.facts:
        notes += (f"Times are means of {trace.facts['mean_of_runs']:,} runs.",)
    title = ", ".join(title_parts(trace).values())
    timed = bool(trace.calls["host_ns"].notna().all())
    calls = {ids[id(drawn)]: drawn.fold.rows[drawn.fold.rows < rows.calls] for drawn in every(top)}
    closed = {ids[id(drawn)] for drawn in every(top) if drawn.members is None and has_inner_calls(rows, drawn.fold)}
    return Drawing(Graph(title, members, edges, flow, timed, notes), calls, closed)


def _member(rows: CallArrays, forms: SimilarityHashes, drawn: VisibleNode, ids: dict[int, str]) -> Member:
    own = ids[id(drawn)] = f"n{len(ids)}"
    box = describe(rows, forms, drawn.fold, own)
    if drawn.members is None:
        return box
    return Group(box, tuple(_member(rows, forms, member, ids) for member in drawn.members))


def _without_dead_ends(
    members: tuple[Member, ...], edges: tuple[Edge, ...], kept: Set[str]
) -> tuple[tuple[Member, ...], tuple[Edge, ...]]:
    """Without operations and inputs that nothing reads, but for those that are to be kept."""
    while True:
        read = {edge.source for edge in edges}
        dead = {box.id for box in boxes_in(members) if box.kind in ("operation", "input")} - read - kept
        if not dead:
            return members, edges
        members = _without(members, dead)
        edges = tuple(edge for edge in edges if edge.target not in dead)


def _without(members: tuple[Member, ...], dead: set[str]) -> tuple[Member, ...]:
    kept: list[Member] = []
    for member in members:
        if isinstance(member, Group):
            kept.append(replace(member, members=_without(member.members, dead)))
        elif member.id not in dead:
            kept.append(member)
    return tuple(kept)


def _says_nothing(phase: Box) -> bool:
    return phase.name == "forward" and " frames" not in phase.repeats


def title_parts(trace: TraceRecord) -> dict[str, str]:
    """What a run was, in the words of its title."""
    facts = trace.facts
    names = ("model", "preset", "checkpoint", "impl", "device", "dtype")
    return {"model": "model"} | {name: str(facts[name]) for name in names if facts.get(name)}
