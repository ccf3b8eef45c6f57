"""Folded call tree as a rich table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from talkerviz.flowchart.builder import build_graph
from talkerviz.flowchart.model import Box, Group, Member, View, heading
from talkerviz.render.escape import visible
from talkerviz.render.terminal.console import fitting_columns, plain_table
from talkerviz.render.text import share_text, time_text
from talkerviz.trace import TraceRecord

# Columns that are left out if there is no room, in this order.
_OPTIONAL_COLUMNS = ("shapes", "class", "share", "calls")
_MIN_SHAPE_CHARACTERS = 24  # longer shapes are folded
_WIDE = 200
_SORT_KEYS: Mapping[str, Callable[[Box], Any]] = {
    "module": lambda box: box.name,
    "class": lambda box: box.class_name,
    "calls": lambda box: -box.calls,
    "total": lambda box: -(box.total_ns or 0),
    "self": lambda box: -(box.self_ns or 0),
    "share": lambda box: -(box.share or 0),
    "shapes": lambda box: box.shapes,
}


def render_tree(trace: TraceRecord, depth: int | None = None, width: int = _WIDE, sort: str | None = None) -> Table:
    """Render the call tree: a line per module below its caller, and a line per phase above.

    Args:
        trace: trace to print.
        depth: levels below the phases; 0 shows the outermost calls alone, None all.
        width: characters of a line; without room for all columns some are left out.
        sort: column by which modules with the same caller are sorted, numbers largest first; None for run order.

    Raises:
        ValueError: no such column, or it was not measured.
    """
    graph = build_graph(trace, View(depth, max_nodes=sys.maxsize, edges="calls"))
    if sort is not None:
        if sort not in _SORT_KEYS:
            raise ValueError(f"cannot sort by {sort!r}: choose from {', '.join(_SORT_KEYS)}")
        if sort in ("total", "self", "share") and not graph.timed:
            raise ValueError(f"cannot sort by {sort!r}: it was not measured in this run")
    rows = [row for member in graph.members for row in _rows(member, "", "", sort)]
    names = ["module", "class", "calls", *(("total", "share") if graph.timed else ()), "shapes"]
    widths = {name: max(len(name), *(len(row[name]) for row in rows), 0) for name in names}
    widths["shapes"] = min(widths["shapes"], _MIN_SHAPE_CHARACTERS)
    names = fitting_columns(widths, _OPTIONAL_COLUMNS, width)
    table = plain_table()
    for name in names:
        number = name in ("calls", "total", "share")
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=name != "shapes")
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _rows(member: Member, guide: str, below: str, sort: str | None) -> Iterator[dict[str, Text]]:
    box, members = (member.box, member.members) if isinstance(member, Group) else (member, ())
    name = Text(guide, style="dim")
    name.append(visible(box.name), style="bold cyan" if box.kind == "phase" else "")
    if box.repeats:
        name.append(f"  {box.repeats}", style="bold magenta")
    yield {
        "module": name,
        "class": Text(visible(box.class_name), style="dim"),
        "calls": Text(f"{box.calls:,}"),
        "total": Text(time_text(box.total_ns)),
        "share": Text(share_text(box.share)),
        "shapes": Text(visible(box.shapes), style="dim"),
    }
    if sort is not None:
        members = tuple(sorted(members, key=lambda inner: _SORT_KEYS[sort](heading(inner))))
    for number, inner in enumerate(members, start=1):
        last = number == len(members)
        yield from _rows(inner, below + ("└── " if last else "├── "), below + ("    " if last else "│   "), sort)
