"""The words of a nested chart, in every format the same: what stands in boxes, on arrows and in the legend."""

from __future__ import annotations

from typing import Literal

from talkerviz.flowchart.model import Box, Change, Edge, Graph, headings_in
from talkerviz.render.escape import shortened
from talkerviz.render.text import share_text, time_text

CHANGE_MARKS: dict[Change, str] = {"added": "+", "removed": "−", "changed": "~"}
"""What stands before the name of what differs, so that colour is not the only sign."""

EdgeStyle = Literal["flow", "carried", "state"]
"""How an arrow is drawn."""


def name_line(box: Box) -> str:
    """A box's name, marked where it differs between two runs; how often it runs where it has no name."""
    mark = f"{CHANGE_MARKS[box.change]} " if box.change else ""
    return mark + shortened(box.name or box.repeats)


def facts_line(box: Box) -> str:
    """`20× · 140 calls of 1.88 ms = 263 ms · 10.8 %`, without what says nothing."""
    calls = f"{box.calls:,} calls" if box.kind == "module" and box.calls > 1 else ""
    time = time_text(box.total_ns)
    if calls and time:
        calls, time = f"{calls} of {time_text(box.mean_ns)} = {time}", ""
    share = share_text(box.share)
    parts = [_repeats(box), calls, time, "" if share == share_text(0) else share]
    return " · ".join(part for part in parts if part)


def group_line(box: Box) -> str:
    """What stands in a group's heading, after its name."""
    share = "" if box.share is None else share_text(box.share)
    parts = [shortened(box.class_name), _repeats(box), share, error_line(box)]
    return " · ".join(part for part in parts if part)


def error_line(box: Box) -> str:
    """What a call raised, or nothing."""
    return f"raised {shortened(box.error)}" if box.error else ""


def box_lines(box: Box) -> list[str]:
    """What stands below a box's name; operations are small."""
    lines = [_repeats(box)]
    if box.kind != "operation":
        lines = [shortened(box.class_name), shortened(box.shapes), facts_line(box)]
    return [line for line in (*lines, error_line(box)) if line]


def tooltip_lines(box: Box) -> list[str]:
    """All that is known of a box or of a group."""
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
    """How an arrow is drawn. What is kept looks so even where it lies between two repeats."""
    return "state" if edge.state else "carried" if edge.carried else "flow"


def edge_label(edge: Edge) -> str:
    """What stands on an arrow; most have nothing."""
    words = [CHANGE_MARKS[edge.change] if edge.change else "", "kept state" if edge.state else ""]
    words.append(f"({shortened(edge.carried)})" if edge.state and edge.carried else shortened(edge.carried))
    return " ".join(word for word in words if word)


def edge_lines(edge: Edge) -> list[str]:
    """All that is known of an arrow, but where it leads."""
    times = f"{edge.count:,} times" if edge.count > 1 else "once"
    return [line for line in ("kept state" if edge.state else "", edge.carried, times, edge.change or "") if line]


def edge_legend(graph: Graph) -> dict[EdgeStyle, str]:
    """What each arrow that is in the chart stands for."""
    used = {edge_style(edge) for edge in graph.edges}
    texts: dict[EdgeStyle, str] = {
        "flow": "flow of tensors" if graph.flow else "order of calls",
        "carried": "from an earlier repeat",
        "state": "kept state, written in place",
    }
    return {style: text for style, text in texts.items() if style in used}


def change_legend(graph: Graph) -> dict[str, str]:
    """What each change that is in the chart looks like; empty in the chart of one run."""
    used = {box.change for box in headings_in(graph.members)} | {edge.change for edge in graph.edges}
    return {change: f"{mark} {change}" for change, mark in CHANGE_MARKS.items() if change in used}


def _repeats(box: Box) -> str:
    return shortened(box.repeats) if box.name else ""
