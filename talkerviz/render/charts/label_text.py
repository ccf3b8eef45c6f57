"""Texts of nested charts, shared by all formats: boxes, arrows, legend."""

from __future__ import annotations

from typing import Literal

from talkerviz.flowchart.model import Box, Change, Edge, Graph, headings_in
from talkerviz.render.escape import shortened
from talkerviz.render.text import share_text, time_text

CHANGE_MARKS: dict[Change, str] = {"added": "+", "removed": "−", "changed": "~"}
"""Marks before the names of boxes that differ, so that colour is not the only sign."""

EdgeStyle = Literal["flow", "carried", "state"]
"""Style of an arrow: tensor flow, flow from an earlier repeat, state kept in place."""


def name_line(box: Box) -> str:
    """Format a box's name, marked if it differs between two runs; without a name, its repeats."""
    mark = f"{CHANGE_MARKS[box.change]} " if box.change else ""
    return mark + shortened(box.name or box.repeats)


def facts_line(box: Box) -> str:
    """Format repeats, calls, times and share, as `20× · 140 calls of 1.88 ms = 263 ms · 10.8 %`."""
    calls = f"{box.calls:,} calls" if box.kind == "module" and box.calls > 1 else ""
    time = time_text(box.total_ns)
    if calls and time:
        calls, time = f"{calls} of {time_text(box.mean_ns)} = {time}", ""
    share = share_text(box.share)
    parts = [_repeats(box), calls, time, "" if share == share_text(0) else share]
    return " · ".join(part for part in parts if part)


def group_line(box: Box) -> str:
    """Format the rest of a group's heading after its name."""
    share = "" if box.share is None else share_text(box.share)
    parts = [shortened(box.class_name), _repeats(box), share, error_line(box)]
    return " · ".join(part for part in parts if part)


def error_line(box: Box) -> str:
    """Format the exception that a call raised; empty without one."""
    return f"raised {shortened(box.error)}" if box.error else ""


def box_lines(box: Box) -> list[str]:
    """Format the lines below a box's name; an operation has few."""
    lines = [_repeats(box)]
    if box.kind != "operation":
        lines = [shortened(box.class_name), shortened(box.shapes), facts_line(box)]
    return [line for line in (*lines, error_line(box)) if line]


def tooltip_lines(box: Box) -> list[str]:
    """Format everything known about a box or a group."""
    mean = box.mean_ns if box.calls > 1 else None
    lines = [
        box.path or box.name,
        box.class_name,
        f"{box.modules} modules alike" if box.modules > 1 else "",
        box.shapes,
        box.repeats,
        f"{box.calls:,} {'operations' if box.kind == 'operation' else 'calls'}" if box.calls > 1 else "",
        f"total {time_text(box.total_ns)}" if box.total_ns is not None else "",
        f"mean {time_text(mean)}" if mean is not None else "",
        f"self {time_text(box.self_ns)}" if box.self_ns is not None else "",
        f"{share_text(box.share)} of the time" if box.share is not None else "",
        f"raised {box.error}" if box.error else "",
        box.change or "",
        *box.details,
    ]
    return [line for line in lines if line]


def edge_style(edge: Edge) -> EdgeStyle:
    """Choose the style of an arrow; kept state takes precedence over a later repeat."""
    return "state" if edge.state else "carried" if edge.carried else "flow"


def edge_label(edge: Edge) -> str:
    """Format the label of an arrow; most have none."""
    words = [CHANGE_MARKS[edge.change] if edge.change else "", "kept state" if edge.state else ""]
    words.append(f"({shortened(edge.carried)})" if edge.state and edge.carried else shortened(edge.carried))
    return " ".join(word for word in words if word)


def edge_lines(edge: Edge) -> list[str]:
    """Format everything known about an arrow but its ends."""
    times = f"{edge.count:,} times" if edge.count > 1 else "once"
    return [line for line in ("kept state" if edge.state else "", edge.carried, times, edge.change or "") if line]


def edge_legend(graph: Graph) -> dict[EdgeStyle, str]:
    """Describe the arrow styles that occur in the chart."""
    used = {edge_style(edge) for edge in graph.edges}
    texts: dict[EdgeStyle, str] = {
        "flow": "flow of tensors" if graph.flow else "order of calls",
        "carried": "from an earlier repeat",
        "state": "kept state, written in place",
    }
    return {style: text for style, text in texts.items() if style in used}


def change_legend(graph: Graph) -> dict[str, str]:
    """Describe the changes that occur in the chart; empty for a chart of one run."""
    used = {box.change for box in headings_in(graph.members)} | {edge.change for edge in graph.edges}
    return {change: f"{mark} {change}" for change, mark in CHANGE_MARKS.items() if change in used}


def _repeats(box: Box) -> str:
    return shortened(box.repeats) if box.name else ""
