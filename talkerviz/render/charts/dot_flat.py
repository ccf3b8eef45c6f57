"""Flat flowchart as Graphviz DOT: a node per call."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from talkerviz.flowchart.flat_calls import CallGraph, CallGroup, Node, call_graph
from talkerviz.render.charts.palette import BORDER, FAILED, HEAT_FILLS, HEAT_INKS, heat_legend
from talkerviz.render.escape import dot_html, dot_string
from talkerviz.render.text import time_text
from talkerviz.trace import TraceRecord

if TYPE_CHECKING:
    import graphviz

# From the right side of a column's last box to the left side of the next column's first.
_TO_NEXT_COLUMN = {"constraint": "false", "tailport": "e", "headport": "w"}
# Width of a box over its height, gaps included.
_BOX_RATIO = 2.4


def render_dot_flat(trace: TraceRecord) -> str:
    """Render every call in call order, grouped by phase and frame, long chains wrapped into columns."""
    import graphviz  # optional: GPU machines that only record may lack it

    graph = call_graph(trace)
    drawing = graphviz.Digraph(
        "talkerviz",
        graph_attr={
            "fontname": "Helvetica",
            "fontsize": "18",
            "labelloc": "t",
            "label": dot_string(f"{_title(trace)}: arrows are call order, colours self time"),
            "nodesep": "0.25",
            "ranksep": "0.25",
            "bgcolor": "white",
            # Curves around the boxes of a column tangle; straight lines run behind them.
            "splines": "line",
            "outputorder": "edgesfirst",
        },
        node_attr={
            "shape": "box",
            "style": "filled,rounded",
            "fontname": "Helvetica",
            "fontsize": "11",
            "fillcolor": "white",
            "color": BORDER,
        },
        edge_attr={"color": BORDER, "arrowsize": "0.6"},
    )
    rows = max(6, math.ceil(math.sqrt(len(graph.nodes) * _BOX_RATIO / 1.6)))
    for number, group in enumerate(graph.groups):
        _add_group(drawing, number, group, rows)
    for before, after in pairwise(graph.groups):
        drawing.edge(_name(before.nodes[-1]), _name(after.nodes[0]), **_TO_NEXT_COLUMN)
    _add_legend(drawing, graph)
    return str(drawing.source)


def _add_group(drawing: graphviz.Digraph, number: int, group: CallGroup, rows: int) -> None:
    with drawing.subgraph(name=f"cluster_{number}") as cluster:
        cluster.attr(label=dot_string(group.title), style="rounded", color=BORDER, fontsize="14", margin="12")
        for node in group.nodes:
            _add_node(cluster, node)
        for place, (before, after) in enumerate(pairwise(group.nodes), start=1):
            ends_column = place % rows == 0
            cluster.edge(_name(before), _name(after), **(_TO_NEXT_COLUMN if ends_column else {}))
        # Unseen edges between their first boxes keep the columns in order, left to right.
        with cluster.subgraph() as heads:
            heads.attr(rank="same")
            for head, next_head in pairwise(group.nodes[::rows]):
                heads.edge(_name(head), _name(next_head), style="invis")


def _add_node(cluster: graphviz.Digraph, node: Node) -> None:
    lines = [f"<B>{dot_html(node.path) or ' '}</B>", dot_html(node.class_name), dot_html(node.shapes)]
    times = [time_text(node.host_ns)]
    if node.self_ns != node.host_ns:
        times.append(f"self {time_text(node.self_ns)}")
    lines.append(dot_html(", ".join(text for text in times if text)))
    if node.error:
        lines.append(f"<B>{dot_html(node.error)}</B>")
    heat = node.heat or 0
    cluster.node(
        _name(node),
        label=f"<{'<BR/>'.join(line for line in lines if line)}>",
        tooltip=dot_string(f"call {node.call}: {node.path}"),
        fillcolor="white" if node.heat is None else HEAT_FILLS[heat],
        fontcolor=FAILED if node.error else HEAT_INKS[heat],
        color=FAILED if node.error else BORDER,
    )


def _add_legend(drawing: graphviz.Digraph, graph: CallGraph) -> None:
    texts = heat_legend(graph.heat_floors)
    if not texts:
        return
    cells = "".join(
        f'<TD BGCOLOR="{HEAT_FILLS[heat]}"><FONT COLOR="{HEAT_INKS[heat]}">{dot_html(text)}</FONT></TD>'
        for heat, text in enumerate(texts)
    )
    table = f'<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="0" CELLPADDING="5"><TR>{cells}</TR></TABLE>'
    drawing.node("legend", label=f"<{table}>", shape="plaintext", style="", tooltip="self time of a call")


def _name(node: Node) -> str:
    return f"n{node.call}"


def _title(trace: TraceRecord) -> str:
    facts = trace.facts
    names = ("preset", "checkpoint", "device", "dtype")
    return ", ".join([str(facts.get("model", "model")), *(str(facts[name]) for name in names if facts.get(name))])
