"""The folded call tree as a rich table."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from talkerviz.flowchart.builder import build_graph
from talkerviz.flowchart.model import Box, Group, View
from talkerviz.render.escape import visible
from talkerviz.render.terminal.rich_table import fitting_columns, plain_table
from talkerviz.render.text import share_text, time_text
from talkerviz.trace import TraceRecord

# Where there is no room for all columns these go, in this order.
_ROOM_PERMITTING = ("shapes", "class", "share", "calls")
_LEAST_OF_SHAPES = 24  # characters; longer ones are folded
_WIDE = 200


def render_tree(trace: TraceRecord, depth: int | None = None, width: int = _WIDE) -> Table:
    """One line a module under its caller, below a line for its phase; `depth` 0 shows the phases' own calls alone.

    Fewer columns where there is no room for all in `width` characters.
    """
    graph = build_graph(trace, View(depth, max_nodes=sys.maxsize, edges="calls"))
    rows = [row for member in graph.members for row in _rows(member, "", "")]
    names = ["module", "class", "calls", *(("total", "share") if graph.timed else ()), "shapes"]
    widths = {name: max(len(name), *(len(row[name]) for row in rows), 0) for name in names}
    widths["shapes"] = min(widths["shapes"], _LEAST_OF_SHAPES)
    names = fitting_columns(widths, _ROOM_PERMITTING, width)
    table = plain_table()
    for name in names:
        number = name in ("calls", "total", "share")
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=name != "shapes")
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _rows(member: Box | Group, guide: str, below: str) -> Iterator[dict[str, Text]]:
    heading, members = (member.box, member.members) if isinstance(member, Group) else (member, ())
    name = Text(guide, style="dim")
    name.append(visible(heading.name), style="bold cyan" if heading.kind == "phase" else "")
    if heading.repeats:
        name.append(f"  {heading.repeats}", style="bold magenta")
    yield {
        "module": name,
        "class": Text(visible(heading.class_name), style="dim"),
        "calls": Text(f"{heading.calls:,}"),
        "total": Text(time_text(heading.total_ns)),
        "share": Text(share_text(heading.share)),
        "shapes": Text(visible(heading.shapes), style="dim"),
    }
    for place, inner in enumerate(members, start=1):
        last = place == len(members)
        yield from _rows(inner, below + ("└── " if last else "├── "), below + ("    " if last else "│   "))
