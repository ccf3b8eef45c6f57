"""Graph JSON of Google's Model Explorer, which opens and closes groups itself. By convention a `.json` file.

The format: https://github.com/google-ai-edge/model-explorer/wiki, and the classes of `model_explorer.graph_builder`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from talkerviz.flowchart.model import Box, Graph, Group, Member, heading
from talkerviz.render.charts.label_text import CHANGE_MARKS, edge_label
from talkerviz.render.charts.palette import INK, LOOKS, Look, box_look, edge_colour, share_heat
from talkerviz.render.text import share_text, time_text

# Model Explorer's font is ASCII, and a slash separates namespaces.
_PLAIN = {" · ": ", ", "–": "-", "−": "-", "×": "x", "…": "...", "⇒": "=>", "/": "|"}


def render_model_explorer(graph: Graph) -> str:
    """Render boxes as nodes in the namespaces of their groups, coloured by share of the time.

    Arrows to a later repeat, which may point backwards, are an optional overlay, so that they do not distort the
    layout.
    """
    nodes, configs = [], []
    attributes = {"": {"run": graph.title, **({"note": " ".join(graph.notes)} if graph.notes else {})}}
    for member, namespace, label in _placed(graph.members):
        box = heading(member)
        if isinstance(member, Group):
            inside = f"{namespace}/{label}".lstrip("/")
            attributes[inside] = _attributes(box)
            if box.change or share_heat(box.share):
                configs.append(_group_config(inside, LOOKS[box_look(box, False)]))
        else:
            nodes.append(_node(box, namespace, label))
    incoming, overlays = _edges(graph)
    for node in nodes:
        node["incomingEdges"] = incoming[node["id"]]
    drawn = {
        "id": graph.title,
        "nodes": nodes,
        "groupNodeAttributes": attributes,
        "groupNodeConfigs": configs,
        "layoutConfigs": {"keepLayersWithASingleChild": True},
        "tasksData": {"edgeOverlaysDataListLeftPane": overlays, "edgeOverlaysDataListRightPane": []},
    }
    return json.dumps({"label": "talkerviz", "graphs": [drawn]}, ensure_ascii=False, indent=1) + "\n"


def _placed(members: Sequence[Member], namespace: str = "") -> Iterator[tuple[Member, str, str]]:
    """Yield every member with its namespace and its label, unique among the groups of that namespace."""
    taken: set[str] = set()
    for member in members:
        label = plain = _label(heading(member))
        if isinstance(member, Group):
            number = 1
            while label in taken:
                number += 1
                label = f"{plain} ({number})"
            taken.add(label)
        yield member, namespace, label
        if isinstance(member, Group):
            yield from _placed(member.members, f"{namespace}/{label}".lstrip("/"))


def _label(box: Box) -> str:
    mark = CHANGE_MARKS[box.change] if box.change else ""
    words = [mark, box.name, box.class_name, box.repeats]
    label = " ".join(word for word in words if word) or "?"
    for letter, plain in _PLAIN.items():
        label = label.replace(letter, plain)
    return label


def _node(box: Box, namespace: str, label: str) -> dict[str, Any]:
    look = LOOKS[box_look(box, False)]
    output = [{"key": "tensor_shape", "value": shape}] if (shape := box.shapes.rpartition("→")[2].strip()) else []
    return {
        "id": box.id,
        "label": label,
        "namespace": namespace,
        "attrs": [{"key": key, "value": value} for key, value in _attributes(box).items()],
        "outputsMetadata": [{"id": "0", "attrs": output}],
        "style": {"backgroundColor": look.fill, "borderColor": look.border},
    }


def _attributes(box: Box) -> dict[str, str]:
    """List everything known about a box, by name."""
    known = {
        "path": box.path,
        "class": box.class_name,
        "shapes": box.shapes,
        "runs": box.repeats,
        "modules": f"{box.modules:,}" if box.modules > 1 else "",
        "calls": f"{box.calls:,}",
        "total": time_text(box.total_ns) if box.total_ns is not None else "",
        "mean": time_text(box.mean_ns) if box.mean_ns is not None else "",
        "self": time_text(box.self_ns) if box.self_ns is not None else "",
        "share of the time": share_text(box.share) if box.share is not None else "",
        "raised": box.error or "",
        "change": box.change or "",
    }
    for line in box.details:  # `in hidden_states: 1x1x1024 float32`
        what, _, text = line.rpartition(": ")
        known[what or "note"] = text
    return {key: value for key, value in known.items() if value}


def _group_config(namespace: str, look: Look) -> dict[str, str]:
    # Pale, since the colour of an open group is behind everything in it.
    return {
        "namespaceRegex": f"^{re.escape(namespace)}$",
        "backgroundColor": _pale(look.fill),
        "borderColor": look.fill,
        "textColor": INK,
    }


def _pale(colour: str) -> str:
    """Mix a colour `#rrggbb` with two parts of white."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{(part + 2 * 255) // 3:02x}" for part in parts)


def _edges(graph: Graph) -> tuple[dict[str, list[dict[str, str]]], list[dict[str, Any]]]:
    incoming: dict[str, list[dict[str, str]]] = defaultdict(list)
    overlays: dict[str, dict[str, Any]] = {}
    for edge in graph.edges:
        if edge.source == edge.target:
            continue
        if edge.carried:
            name = edge_label(edge)
            overlay = overlays.setdefault(name, {"name": name, "edgeColor": edge_colour(edge), "edges": []})
            overlay["edges"].append({"sourceNodeId": edge.source, "targetNodeId": edge.target})
        else:
            place = str(len(incoming[edge.target]))
            incoming[edge.target].append(
                {"sourceNodeId": edge.source, "sourceNodeOutputId": "0", "targetNodeInputId": place}
            )
    data = {"type": "edge_overlays", "name": "later repeats", "overlays": list(overlays.values())}
    return incoming, [data] if overlays else []
