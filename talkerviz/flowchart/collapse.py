"""Close groups of a picture that is drawn already."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from talkerviz.flowchart.model import Box, Edge, Graph, Group


def collapse_groups(graph: Graph, ids: Set[str]) -> Graph:
    """The graph with these groups as boxes: arrows to and from what was in one are its own, those inside are gone.

    But for what one turn or frame leaves for a later one, which the box hands itself.
    """
    drawn_as: dict[str, str] = {}
    around: dict[str, tuple[str, ...]] = {}

    def closed(member: Box | Group, within: str, groups: tuple[str, ...]) -> Box | Group:
        if isinstance(member, Box):
            drawn_as[member.id], around[member.id] = within or member.id, (*groups, member.id)
            return member
        groups = (*groups, member.id)
        if within or member.id in ids:
            within = within or member.id
            for inner in member.members:
                closed(inner, within, groups)
            return member.box
        return replace(member, members=tuple(closed(inner, "", groups) for inner in member.members))

    members = tuple(closed(member, "", ()) for member in graph.members)
    edges: dict[tuple[str, str, str, object], Edge] = {}
    for edge in graph.edges:
        source, target = drawn_as[edge.source], drawn_as[edge.target]
        # Turns of what is further inside are over within one of the box's.
        nearest = [one for one, two in zip(around[edge.source], around[edge.target], strict=False) if one == two][-1:]
        if source == target and not (edge.carried == "next frame" or (edge.carried and nearest == [source])):
            continue
        key = (source, target, edge.carried, edge.change)
        known = edges.get(key)
        edges[key] = Edge(
            source,
            target,
            edge.carried,
            edge.state and (known is None or known.state),
            edge.count + (known.count if known else 0),
            edge.change,
        )
    return replace(graph, members=members, edges=tuple(edges.values()))
