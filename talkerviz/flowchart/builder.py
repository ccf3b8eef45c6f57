"""Construction of a flowchart from a trace: folding, expansion, labels, arrows."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import numpy as np

from talkerviz.flowchart.box_labels import is_result, label_box
from talkerviz.flowchart.call_arrays import CallArrays, call_arrays
from talkerviz.flowchart.dataflow import Dataflow, build_dataflow
from talkerviz.flowchart.edges import AFTER, BEFORE, build_edges
from talkerviz.flowchart.expansion import VisibleNode, expand, has_inner_calls, walk
from talkerviz.flowchart.model import EDGES, Box, Edge, Graph, Group, Member, View, boxes_in
from talkerviz.flowchart.similarity import SimilarityHashes, similarity_hashes
from talkerviz.trace import TraceRecord
from talkerviz.trace.runs import as_one_run


def build_graph(trace: TraceRecord, view: View = View()) -> Graph:  # noqa: B008  (it is frozen)
    """Build the flowchart of a trace or a selection.

    Raises:
        ValueError: a pattern that matches no module, unknown edges, or flow edges without a recorded flow.
    """
    return draw(trace, view).graph


@dataclass(frozen=True)
class Drawing:
    """Flowchart with the calls of its boxes.

    Attributes:
        graph: the flowchart.
        calls: id of a box or group -> rows of its calls in `as_one_run` of the trace.
        closed: ids of collapsed boxes that have child calls.
    """

    graph: Graph
    calls: Mapping[str, np.ndarray]
    closed: Set[str]


def draw(trace: TraceRecord, view: View) -> Drawing:
    """Build the flowchart of a trace, with the calls of its boxes."""
    return draw_prepared(prepare(trace, view.edges), view)


@dataclass(frozen=True)
class Prepared:
    """Trace prepared for drawing, independent of the view.

    Attributes:
        trace: trace of one run.
        flow: whether edges are the flow of tensors.
        rows, dataflow, hashes: arrays of the trace.
    """

    trace: TraceRecord
    flow: bool
    rows: CallArrays
    dataflow: Dataflow
    hashes: SimilarityHashes


def prepare(trace: TraceRecord, edges: str | None) -> Prepared:
    """Compute the slow part of a drawing, shared by all views with the same edges."""
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
    """Draw a view of a trace that was prepared for the view's edges."""
    trace, flow, rows = prepared.trace, prepared.flow, prepared.rows
    dataflow, hashes = prepared.dataflow, prepared.hashes
    top = [phase for phase in expand(rows, hashes, dataflow, view) if phase.members]  # a phase may hold constants only
    ids: dict[int, str] = {}
    members = tuple(_member(rows, hashes, node, ids) for node in top)
    edges = build_edges(rows, dataflow, top, ids, flow)
    if len(members) == 1 and isinstance(members[0], Group) and _is_plain_forward(members[0].box):
        members = members[0].members
    if any(edge.source == BEFORE for edge in edges):
        members = (Box(BEFORE, "input", "what ran before"), *members)
    if any(edge.target == AFTER for edge in edges):
        members = (*members, Box(AFTER, "input", "what ran after"))
    kept = {ids[id(node)] for node in walk(top) if node.members is None and is_result(rows, node.fold)}
    members, edges = _remove_dead_ends(members, edges, kept | {AFTER})
    notes: tuple[str, ...] = ()
    if not flow and view.edges is None and len(trace.calls):
        notes += ("Arrows are the order of calls: the flow of tensors was not recorded.",)
    if "mean_of_runs" in trace.facts:
        notes += (f"Times are means of {trace.facts['mean_of_runs']:,} runs.",)
    title = ", ".join(title_parts(trace).values())
    timed = bool(trace.calls["host_ns"].notna().all())
    calls = {ids[id(node)]: node.fold.rows[node.fold.rows < rows.calls] for node in walk(top)}
    closed = {ids[id(node)] for node in walk(top) if node.members is None and has_inner_calls(rows, node.fold)}
    return Drawing(Graph(title, members, edges, flow, timed, notes), calls, closed)


def _member(rows: CallArrays, hashes: SimilarityHashes, node: VisibleNode, ids: dict[int, str]) -> Member:
    own = ids[id(node)] = f"n{len(ids)}"
    box = label_box(rows, hashes, node.fold, own)
    if node.members is None:
        return box
    return Group(box, tuple(_member(rows, hashes, member, ids) for member in node.members))


def _remove_dead_ends(
    members: tuple[Member, ...], edges: tuple[Edge, ...], kept: Set[str]
) -> tuple[tuple[Member, ...], tuple[Edge, ...]]:
    """Remove operations and inputs that nothing reads, except those in `kept`."""
    while True:
        read = {edge.source for edge in edges}
        dead = {box.id for box in boxes_in(members) if box.kind in ("operation", "input")} - read - kept
        if not dead:
            return members, edges
        members = _remove(members, dead)
        edges = tuple(edge for edge in edges if edge.target not in dead)


def _remove(members: tuple[Member, ...], dead: set[str]) -> tuple[Member, ...]:
    kept: list[Member] = []
    for member in members:
        if isinstance(member, Group):
            kept.append(replace(member, members=_remove(member.members, dead)))
        elif member.id not in dead:
            kept.append(member)
    return tuple(kept)


def _is_plain_forward(phase: Box) -> bool:
    return phase.name == "forward" and " frames" not in phase.repeats


def title_parts(trace: TraceRecord) -> dict[str, str]:
    """Return the parts of a chart's title: model, preset, checkpoint, implementation, device, dtype."""
    facts = trace.facts
    names = ("model", "preset", "checkpoint", "impl", "device", "dtype")
    return {"model": "model"} | {name: str(facts[name]) for name in names if facts.get(name)}
