"""Flat flowchart as Mermaid: a node per call."""

from __future__ import annotations

from talkerviz.flowchart.flat_calls import HEAT_LEVELS, CallGraph, Node, call_graph
from talkerviz.render.charts.palette import BORDER, FAILED, HEAT_FILLS, HEAT_INKS, heat_legend
from talkerviz.render.escape import mermaid_label
from talkerviz.render.text import time_text
from talkerviz.trace import TraceRecord


def render_mermaid_flat(trace: TraceRecord) -> str:
    """Render every call in call order, grouped by phase and frame."""
    graph = call_graph(trace)
    lines = ["flowchart TD"]
    for number, group in enumerate(graph.groups):
        lines.append(f'  subgraph g{number}["{mermaid_label(group.title)}"]')
        lines += [f"    {_node(node)}" for node in group.nodes]
        lines.append("  end")
    lines += [f"  n{before} --> n{after}" for before, after in graph.edges]
    lines += _legend(graph)
    return "\n".join(lines) + "\n"


def _node(node: Node) -> str:
    lines = [node.path, node.class_name, node.shapes, time_text(node.host_ns), node.error or ""]
    label = "<br/>".join(mermaid_label(line) for line in lines if line)
    style = "failed" if node.error else None if node.heat is None else f"heat{node.heat}"
    return f'n{node.call}["{label}"]' + (f":::{style}" if style else "")


def _legend(graph: CallGraph) -> list[str]:
    lines = [f"  classDef failed fill:#ffffff,stroke:{FAILED},stroke-width:3px,color:{FAILED}"]
    if graph.heat_floors:
        texts = heat_legend(graph.heat_floors)
        lines.append('  subgraph legend["self time of a call; arrows are call order"]')
        # Mermaid turns a subgraph without edges to the outside on its side, unless told.
        lines.append("    direction TB")
        lines += [f'    l{heat}["{mermaid_label(text)}"]:::heat{heat}' for heat, text in enumerate(texts)]
        lines.append("  end")
        lines += [
            f"  classDef heat{heat} fill:{HEAT_FILLS[heat]},stroke:{BORDER},color:{HEAT_INKS[heat]}"
            for heat in range(HEAT_LEVELS)
        ]
    return lines
