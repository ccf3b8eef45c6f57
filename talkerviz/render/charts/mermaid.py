"""Nested flowchart as Mermaid subgraphs, which GitHub and other pages render."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace

from talkerviz.flowchart.model import Box, Edge, Graph, Group
from talkerviz.render.charts.label_text import (
    EdgeStyle,
    box_lines,
    change_legend,
    edge_label,
    edge_legend,
    edge_style,
    group_line,
    name_line,
)
from talkerviz.render.charts.palette import FAILED, GROUP_LOOKS, LOOKS, box_look, edge_colour, group_look, share_legend
from talkerviz.render.escape import link_target, mermaid_label, one_line, shortened

_SHAPES = {"operation": '(["{}"])', "input": '[/"{}"/]'}
_ARROWS: dict[EdgeStyle, str] = {"flow": "-->", "carried": "-.->", "state": "==>"}
_ARROW_NAMES: dict[EdgeStyle, str] = {"flow": "arrow", "carried": "dotted arrow", "state": "thick arrow"}
# Small and close, so that charts stay short; any closer, titles of nested groups would overlap.
_CONFIG = """\
config:
  themeVariables:
    fontSize: 13px
  flowchart:
    nodeSpacing: 24
    rankSpacing: 40
    padding: 8
    wrappingWidth: 600"""
# Characters of a name and its class up to which they share a line.
_MAX_ONE_LINE_CHARACTERS = 45
_MAX_TEXT_CHARACTERS = 120  # a title or note in one line of a wide chart
_DASHED = ("removed", "more", "repeat")


def render_mermaid(graph: Graph) -> str:
    """Render a graph as Mermaid, with all boxes, groups and edges."""
    diff = bool(change_legend(graph))
    looks: dict[str, list[str]] = defaultdict(list)
    title = json.dumps(shortened(one_line(graph.title), _MAX_TEXT_CHARACTERS), ensure_ascii=False)
    lines = ["---", f"title: {title}", *_CONFIG.split("\n"), "---", "flowchart TB"]
    lines += _members(graph.members, 0, diff, looks)
    edges = _edges_in_order(graph)
    lines += [f"  {_edge(edge)}" for edge in edges]
    lines += _legend(graph, diff, looks)
    lines += [f'  click {box.id} href "{link_target(box.link)}"' for box in graph.boxes if link_target(box.link)]
    for look, ids in looks.items():
        lines += [f"  {_class_def(look)}", f"  class {','.join(ids)} {look}"]
    return "\n".join(lines + _edge_looks(edges)) + "\n"


def _members(members: tuple[Box | Group, ...], depth: int, diff: bool, looks: dict[str, list[str]]) -> list[str]:
    lines = []
    indent = "  " * (depth + 1)
    for member in members:
        if isinstance(member, Box):
            box = member
            looks[box_look(box, diff)].append(box.id)
            lines.append(indent + _box(box))
        else:
            box = member.box
            looks[group_look(box, depth)].append(box.id)
            title = f"<b>{mermaid_label(name_line(box))}</b> {mermaid_label(group_line(box))}"
            lines += [f'{indent}subgraph {box.id}["{title}"]', f"{indent}  direction TB"]
            lines += _members(member.members, depth + 1, diff, looks)
            lines.append(f"{indent}end")
        if box.error:
            looks["failed"].append(box.id)
    return lines


def _box(box: Box) -> str:
    name = mermaid_label(name_line(box))
    lines = [f"<b>{name}</b>" if box.kind == "module" else name, *map(mermaid_label, box_lines(box))]
    if box.class_name and len(box.name) + len(box.class_name) <= _MAX_ONE_LINE_CHARACTERS:
        lines[:2] = [" ".join(lines[:2])]
    return box.id + _SHAPES.get(box.kind, '["{}"]').format("<br/>".join(lines))


def _edge(edge: Edge) -> str:
    label = mermaid_label(edge_label(edge))
    arrow = _ARROWS[edge_style(edge)]
    return f'{edge.source} {arrow}|"{label}"| {edge.target}' if label else f"{edge.source} {arrow} {edge.target}"


def _edges_in_order(graph: Graph) -> list[Edge]:
    """Sort edges so that Mermaid recognises which of them point upwards.

    Mermaid walks edges depth-first from the first box and reverses those that lead back to a box on its path, so it
    must enter a loop at its beginning, the box that the flow returns to.
    """
    place = {box.id: place for place, box in enumerate(graph.boxes)}
    begins = {edge.target for edge in graph.edges if place[edge.target] <= place[edge.source] and not edge.state}
    # First beginning of a loop reachable from each box, itself included.
    leads_to = {id: place[id] if id in begins else len(place) for id in place}
    for edge in sorted(graph.edges, key=lambda edge: -place[edge.source]):
        if place[edge.source] < place[edge.target]:
            leads_to[edge.source] = min(leads_to[edge.source], leads_to[edge.target])
    return sorted(
        graph.edges,
        key=lambda edge: (edge.state, place[edge.target] <= place[edge.source], leads_to[edge.target]),
    )


def _legend(graph: Graph, diff: bool, looks: dict[str, list[str]]) -> list[str]:
    """Draw the legend as a subgraph, kept above the top boxes by invisible links."""
    texts = change_legend(graph)
    if graph.timed and not diff:
        texts |= {f"heat{heat}": text for heat, text in enumerate(share_legend())}
    entries = [(look, f"legend_{look}", mermaid_label(text)) for look, text in texts.items()]
    legend_lines = [f"{_ARROW_NAMES[style]}: {text}" for style, text in edge_legend(graph).items()]
    legend_lines += [shortened(note, _MAX_TEXT_CHARACTERS) for note in graph.notes if note]
    if legend_lines:
        entries.append(("plain", "legend_text", "<br/>".join(map(mermaid_label, legend_lines))))
    if not entries:
        return []
    title = "share of the time" if graph.timed and not diff else "legend"
    lines = [f'  subgraph legend_group["{title}"]', "    direction TB"]
    for look, id, text in entries:
        lines.append(f'    {id}["{text}"]')
        looks[look].append(id)
    looks["group0"].append("legend_group")
    lines.append("  end")
    led_to = {edge.target for edge in graph.edges if not edge.carried}
    tops = [box for box in replace(graph, members=graph.members[:1]).boxes if box.id not in led_to]
    return lines + [f"  {entries[0][1]} ~~~ {box.id}" for box in tops]


def _class_def(look: str) -> str:
    if look == "failed":
        return f"classDef failed stroke:{FAILED},stroke-width:3px"
    fill, border, ink = (LOOKS | GROUP_LOOKS)[look]
    dashes = ",stroke-dasharray:5 4" if look.startswith(_DASHED) else ""
    return f"classDef {look} fill:{fill},stroke:{border},color:{ink}{dashes}"


def _edge_looks(edges: list[Edge]) -> list[str]:
    numbers: dict[str, list[str]] = defaultdict(list)
    for number, edge in enumerate(edges):
        width = "1.5px" if edge_style(edge) == "flow" else "2.5px"
        numbers[f"stroke:{edge_colour(edge)},stroke-width:{width}"].append(str(number))
    return [f"  linkStyle {','.join(places)} {look}" for look, places in numbers.items()]


# Mermaid's default limits, which a page can raise and GitHub does not.
MAX_CHARACTERS = 50_000
MAX_EDGES = 500

# An arrow of any style or an invisible link between two ids; Mermaid counts both.
_EDGE = re.compile(r"^ *\w+ (?:-->|-\.->|==>|~~~)", re.M)


def over_github_limits(text: str) -> str | None:
    """Return a warning if GitHub will not draw a chart, else None."""
    edges = len(_EDGE.findall(text))
    if len(text) <= MAX_CHARACTERS and edges <= MAX_EDGES:
        return None
    return (
        f"{edges:,} edges in {len(text):,} characters: GitHub draws at most {MAX_EDGES} and {MAX_CHARACTERS:,}; "
        "choose less with --phase, --frame or --depth"
    )
