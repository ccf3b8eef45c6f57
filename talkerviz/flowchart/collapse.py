"""Collapse expanded groups of a finished flowchart into boxes."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from talkerviz.flowchart.model import Box, Edge, Graph, Group


def collapse_groups(graph: Graph, ids: Set[str]) -> Graph:
    """Collapse groups: arrows to and from their members become their own, arrows inside them go.

    An arrow inside a group that leads to its next frame or its next repetition becomes an arrow from the box to itself.

    Args:
        graph: a flowchart.
        ids: ids of the groups.
    """
    visible_id: dict[str, str] = {}
    ancestors: dict[str, tuple[str, ...]] = {}

    def collapsed(member: Box | Group, within: str, groups: tuple[str, ...]) -> Box | Group:
        if isinstance(member, Box):
            visible_id[member.id], ancestors[member.id] = within or member.id, (*groups, member.id)
            return member
        groups = (*groups, member.id)
        if within or member.id in ids:
            within = within or member.id
            for inner in member.members:
                collapsed(inner, within, groups)
            return member.box
        return replace(member, members=tuple(collapsed(inner, "", groups) for inner in member.members))

    members = tuple(collapsed(member, "", ()) for member in graph.members)
    edges: dict[tuple[str, str, str, object], Edge] = {}
    for edge in graph.edges:
        source, target = visible_id[edge.source], visible_id[edge.target]
        # Repetitions of a nested group are inside a single repetition of the box.
        pairs = zip(ancestors[edge.source], ancestors[edge.target], strict=False)
        nearest = [source_id for source_id, target_id in pairs if source_id == target_id][-1:]
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
