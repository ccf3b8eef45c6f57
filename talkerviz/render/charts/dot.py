"""Nested flowchart as Graphviz DOT: clusters, boxes with time bars, a legend."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from talkerviz.flowchart.model import Box, Edge, Graph, Group
from talkerviz.render.charts.dot_columns import Column, columns, ids_of, numbers_of, ranks
from talkerviz.render.charts.dot_labels import box_label, chart_label, group_label
from talkerviz.render.charts.label_text import change_legend, edge_label, edge_lines, edge_style, tooltip_lines
from talkerviz.render.charts.palette import FAILED, GROUP_LOOKS, INK, LOOKS, box_look, edge_colour, group_look
from talkerviz.render.escape import dot_html, dot_string, link_target

if TYPE_CHECKING:
    import graphviz

# Same widths as Helvetica; Graphviz and browsers find it, or the same substitute, on every system.
_FONT = "Arial"
# Weight of arrows within a column; arrows between columns have weight 1, so that they hardly bend columns.
_COLUMN_WEIGHT = 20
_POINT = {"label": "", "shape": "point", "style": "invis", "width": "0", "height": "0"}
_EDGE_STYLES = {"flow": "solid", "carried": "dashed", "state": "dashed,bold"}


def render_dot(graph: Graph) -> str:
    """Render a graph as DOT, with all boxes, groups and edges."""
    import graphviz  # optional: GPU machines that only record may lack it

    parts = columns(graph)
    drawing = graphviz.Digraph(
        "talkerviz",
        graph_attr={
            "fontname": _FONT,
            "fontcolor": INK,
            "labelloc": "t",
            "label": chart_label(graph, max(1, len(parts) / 2.5)),
            "tooltip": " ",
            "nodesep": "0.22",
            "ranksep": "0.32",
            "pad": "0.3",
            "bgcolor": "white",
            # Without it the columns could not begin at the same height.
            "newrank": "true",
            "outputorder": "edgesfirst",
        },
        node_attr={"shape": "box", "fontname": _FONT, "fontsize": "11", "margin": "0.1,0.05", "height": "0.1"},
        edge_attr={"arrowsize": "0.6", "fontname": _FONT, "fontsize": "9"},
    )
    many = parts if len(parts) > 1 else []
    if many:
        _add_points(drawing, many)
    _add_members(drawing, graph.members, 0, bool(change_legend(graph)), many)
    for column in parts:
        for above, below in pairwise(column):
            drawing.edge(above[-1], below[0], style="invis")
    held = _add_edges(drawing, graph, parts)
    if many:
        _hang_columns(drawing, graph, many, held)
    return str(drawing.source)


def _add_points(drawing: graphviz.Digraph, parts: list[Column]) -> None:
    """Add an invisible point above each column, in run order, and one above these points.

    Graphviz orders columns as it reaches them from the first node, then moves them for fewer crossings, unless that
    bends an edge between nodes of one `group`.
    """
    drawing.node(_point_id(), **_POINT)
    with drawing.subgraph() as row:
        row.attr(rank="same")
        for number in range(len(parts)):
            row.node(_point_id(number), group=_point_id(number), **_POINT)
        for number in range(1, len(parts)):
            row.edge(_point_id(number - 1), _point_id(number), style="invis")
    for number in range(len(parts)):
        drawing.edge(_point_id(), _point_id(number), style="invis")


def _point_id(number: int | None = None) -> str:
    return "top" if number is None else f"top_{number}"


def _hang_columns(drawing: graphviz.Digraph, graph: Graph, parts: list[Column], held: set[str]) -> None:
    """Hang columns, and boxes without an edge from above, from the invisible points.

    A box at the height of the points would pull its column up and out of order. Graphviz 2.43 then lets columns cross,
    and fails with "trouble in init_rank".
    """
    for number, column in enumerate(parts):
        first = column[0][0]
        drawing.node(first, group=_point_id(number))
        drawing.edge(_point_id(number), first, style="invis", weight=str(_COLUMN_WEIGHT))
        held = held | {first}
    column_of = numbers_of(parts)
    for box in graph.boxes:
        if box.id in held:
            continue
        if box.id in column_of:
            drawing.edge(_point_id(column_of[box.id]), box.id, style="invis")
        elif len(graph.members) == 1:
            # It is in one group with the points, which come first only if the box is below one of them.
            drawing.edge(_point_id(), box.id, style="invis")


def _add_members(
    drawing: graphviz.Digraph, members: tuple[Box | Group, ...], depth: int, diff: bool, parts: list[Column]
) -> None:
    """Add the members of a group, with an invisible cluster around those of each column."""
    column_of = numbers_of(parts)
    if len(members) == 1:
        column_of = {}
    elif parts and depth:
        # The columns are in a group, so the points must be in it too.
        for number in (None, *range(len(parts))):
            drawing.node(_point_id(number))
    inner = parts if len(members) == 1 else []
    for number, together in groupby(members, key=lambda member: column_of.get(next(iter(ids_of(member)), ""))):
        if number is None or len(parts[number]) == 1:
            _add_each(drawing, together, depth, diff, inner)
            continue
        with drawing.subgraph(name=f"cluster_column_{number}") as column:
            column.attr(style="invis", margin="1", label="")
            _add_each(column, together, depth, diff, inner)


def _add_each(
    drawing: graphviz.Digraph, members: Iterable[Box | Group], depth: int, diff: bool, parts: list[Column]
) -> None:
    for member in members:
        if isinstance(member, Box):
            _add_box(drawing, member, diff)
            continue
        with drawing.subgraph(name=f"cluster_{member.id}") as cluster:
            cluster.attr(**_group_look(member.box, depth))
            _add_members(cluster, member.members, depth + 1, diff, parts)


def _add_edges(drawing: graphviz.Digraph, graph: Graph, parts: list[Column]) -> set[str]:
    """Add all edges; return the boxes of columns that have an edge from above."""
    down, column_of = ranks(graph, parts), numbers_of(parts)
    place = {box.id: place for place, box in enumerate(graph.boxes)}
    names = {box.id: box.path or box.name for box in graph.boxes}
    held = {ids[0] for column in parts for ids in column[1:]}
    for edge in graph.edges:
        tooltip = [f"{names[edge.source]} → {names[edge.target]}", *edge_lines(edge)]
        look = {**_edge_look(edge), "tooltip": _tooltip(tooltip)}
        upper, lower = sorted((edge.source, edge.target), key=lambda id: (down[id], place[id]))
        steps = down[lower] - down[upper]
        if upper == lower:
            drawing.edge(upper, lower, **look)
            continue
        if not steps and down[lower] <= 0:
            # Between tops of columns, which stay at one height. Graphviz 2.43 reserves room for labels before it places
            # clusters, and fails if a cluster is in the way; external labels are placed at the end.
            if "label" in look:
                look["xlabel"] = look.pop("label")
            drawing.edge(edge.source, edge.target, constraint="false", **look)
            continue
        if upper in column_of:
            held.add(lower)
        if lower == edge.source:
            # Upwards. Graphviz routes it around boxes if it is given reversed.
            drawing.edge(upper, lower, dir="back", **look)
            continue
        weight = 1
        if upper not in column_of or lower not in column_of or column_of[upper] == column_of[lower]:
            # Pull boxes as high as possible, and consecutive boxes into a line.
            weight = _COLUMN_WEIGHT * (1 + 2 * (steps == 1) + (place[lower] - place[upper] == 1))
        drawing.edge(upper, lower, weight=str(weight), **look)
    return held


def _add_box(drawing: graphviz.Digraph, box: Box, diff: bool) -> None:
    look = {"style": "filled,rounded"}
    if box.kind == "input":
        look = {"shape": "ellipse", "style": "filled", "margin": "0"}
    elif box.kind == "operation":
        look["margin"] = "0.08,0.01"
    drawing.node(box.id, label=box_label(box), **_colours(box, box_look(box, diff), look))


def _group_look(box: Box, depth: int) -> dict[str, str]:
    look = {"label": group_label(box), "labeljust": "l", "style": "filled,rounded", "margin": "10"}
    return _colours(box, group_look(box, depth), look)


def _colours(box: Box, look: str, more: dict[str, str]) -> dict[str, str]:
    """Return the attributes that boxes and groups share, added to others."""
    fill, border, ink = (LOOKS | GROUP_LOOKS)[look]
    found = {**more, "fillcolor": fill, "color": border, "fontcolor": ink, "tooltip": _tooltip(tooltip_lines(box))}
    if box.change == "removed" or box.kind in ("more", "repeat"):
        found["style"] += ",dashed"
    if box.error:
        found |= {"color": FAILED, "penwidth": "2"}
    if box.link:
        found["URL"] = dot_string(link_target(box.link))
    return found


def _edge_look(edge: Edge) -> dict[str, str]:
    colour = edge_colour(edge)
    look = {"color": colour, "style": "dashed" if edge.change == "removed" else _EDGE_STYLES[edge_style(edge)]}
    if label := edge_label(edge):
        # The space keeps the label off the line.
        look |= {"label": f"<&#160;{dot_html(label)}>", "fontcolor": colour}
    return look


def _tooltip(lines: list[str]) -> str:
    import graphviz

    # Graphviz replaces an empty tooltip, and takes text in angle brackets for HTML.
    text: str = graphviz.nohtml("\\n".join(dot_string(line) for line in lines if line) or " ")
    return text
