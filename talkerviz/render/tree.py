"""The folded call tree as a rich table."""

from __future__ import annotations

import sys

from rich import box
from rich.table import Table
from rich.text import Text

from talkerviz.graph.build import build_graph
from talkerviz.graph.graph import Box, Group
from talkerviz.graph.view import View
from talkerviz.render.text import share_text, time_text
from talkerviz.trace import Trace


def render_tree(trace: Trace, depth: int | None = None) -> Table:
    """One line a module under its caller, below a line for its phase; `depth` 0 shows the phases' own calls alone."""
    graph = build_graph(trace, View(depth, max_nodes=sys.maxsize, edges="calls"))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("module", no_wrap=True)
    table.add_column("class", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    if graph.timed:
        table.add_column("total", justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
    table.add_column("shapes", overflow="fold")
    for member in graph.members:
        _add(table, member, "", "", graph.timed)
    return table


def _add(table: Table, member: Box | Group, guide: str, below: str, timed: bool) -> None:
    heading, members = (member.box, member.members) if isinstance(member, Group) else (member, ())
    name = Text(guide, style="dim")
    name.append(heading.name, style="bold cyan" if heading.kind == "phase" else "")
    if heading.repeats:
        name.append(f"  {heading.repeats}", style="bold magenta")
    cells = [name, Text(heading.class_name, style="dim"), Text(f"{heading.calls:,}")]
    if timed:
        cells += [Text(time_text(heading.total_ns)), Text(share_text(heading.share))]
    cells.append(Text(heading.shapes, style="dim"))
    table.add_row(*cells)
    for place, inner in enumerate(members, start=1):
        last = place == len(members)
        _add(table, inner, below + ("└── " if last else "├── "), below + ("    " if last else "│   "), timed)
