"""A graph as Graphviz DOT: nested clusters, boxes with a bar of time, a legend."""

from __future__ import annotations

from itertools import pairwise

import graphviz

from talkerviz.graph.graph import Box, Edge, Graph, Group
from talkerviz.render.colours import FAILED, GROUP_LOOKS, INK, LOOKS, box_look, edge_colour, group_look
from talkerviz.render.columns import Column, columns, ranks
from talkerviz.render.dot_label import box_label, chart_label, group_label
from talkerviz.render.escape import dot_html, dot_string, link_target
from talkerviz.render.label import change_legend, edge_label, edge_lines, edge_style, tooltip_lines

# Its widths are those of Helvetica, and both Graphviz and browsers find it, or the same substitute for it, everywhere.
_FONT = "Arial"
_PULL = 20  # of a column's top, so that columns begin at one height
_EDGE_STYLES = {"flow": "solid", "carried": "dashed", "state": "dashed,bold"}


def render_dot(graph: Graph) -> str:
    """All boxes in their groups, and all edges between them."""
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
    _add_members(drawing, graph.members, 0, bool(change_legend(graph)))
    _add_order(drawing, parts)
    down = ranks(graph, parts)
    place = {box.id: place for place, box in enumerate(graph.boxes)}
    names = {box.id: box.path or box.name for box in graph.boxes}
    column_of = {id: number for number, column in enumerate(parts) for ids in column for id in ids}
    for edge in graph.edges:
        tooltip = [f"{names[edge.source]} → {names[edge.target]}", *edge_lines(edge)]
        look = {**_edge_look(edge), "tooltip": _tooltip(tooltip)}
        steps = down[edge.target] - down[edge.source]
        free = edge.source not in column_of or edge.target not in column_of
        if steps <= 0 or not (free or column_of[edge.source] == column_of[edge.target]):
            # Arrows upwards and between columns have no say in where boxes stand: Graphviz 2.43 fails on some that do.
            drawing.edge(edge.source, edge.target, constraint="false", **look)
            continue
        # What could stand at several heights stands as high as it can, and what follows each other in a line.
        weight = 1 + 2 * (steps == 1) + (place[edge.target] - place[edge.source] == 1)
        drawing.edge(edge.source, edge.target, weight=str(weight), **look)
    return str(drawing.source)


def _add_members(drawing: graphviz.Digraph, members: tuple[Box | Group, ...], depth: int, diff: bool) -> None:
    for member in members:
        if isinstance(member, Box):
            _add_box(drawing, member, diff)
            continue
        with drawing.subgraph(name=f"cluster_{member.id}") as cluster:
            cluster.attr(**_group_look(member.box, depth))
            _add_members(cluster, member.members, depth + 1, diff)


def _add_order(drawing: graphviz.Digraph, parts: list[Column]) -> None:
    """What stands in one column below each other, and columns side by side, by edges that are not seen."""
    for column in parts:
        for above, below in pairwise(column):
            drawing.edge(above[-1], below[0], style="invis")
    if len(parts) < 2:
        return
    # Edges between clusters of one rank do not order them, but edges from boxes above do, which are none's member.
    tops = [f"top_{place}" for place in range(len(parts))]
    with drawing.subgraph() as above_all:
        above_all.attr(rank="same")
        for top in tops:
            above_all.node(top, label="", shape="point", style="invis", width="0", height="0", group=top)
        for left, right in pairwise(tops):
            above_all.edge(left, right, style="invis")
    for top, column in zip(tops, parts, strict=True):
        # One group: nothing may cross it.
        drawing.node(column[0][0], group=top)
        drawing.edge(top, column[0][0], style="invis", weight=str(_PULL))


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
    """The attributes that are alike for boxes and groups, and more."""
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
        # The space keeps it off the line.
        look |= {"label": f"<&#160;{dot_html(label)}>", "fontcolor": colour}
    return look


def _tooltip(lines: list[str]) -> str:
    # An empty one would be filled in by Graphviz, and text in angle brackets be taken for HTML.
    text: str = graphviz.nohtml("\\n".join(dot_string(line) for line in lines if line) or " ")
    return text
