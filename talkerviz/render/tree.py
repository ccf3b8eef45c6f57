"""The folded call tree as a rich table."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from talkerviz.graph.tree import TreeNode, call_tree
from talkerviz.render.text import share_text, time_text
from talkerviz.trace import Trace
from talkerviz.trace.shapes import and_others


def render_tree(trace: Trace, depth: int | None = None) -> Table:
    """One line a module under its caller, below a line for its phase; `depth` 0 shows the phases' own calls alone."""
    phases = call_tree(trace)
    times = [phase.total_ns for phase in phases if phase.total_ns is not None]
    timed = bool(times) and len(times) == len(phases)
    whole = sum(times) if timed else None
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("module", no_wrap=True)
    table.add_column("class", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    if timed:
        table.add_column("total", justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
    table.add_column("shapes", overflow="fold")
    for phase in phases:
        _add(table, phase, "", "", None, whole, None if depth is None else depth + 1)
    return table


def _add(
    table: Table,
    node: TreeNode,
    guide: str,
    below: str,
    parent: TreeNode | None,
    whole: int | None,
    depth: int | None,
) -> None:
    name = Text(guide, style="dim")
    if parent is None:
        name.append(node.path, style="bold cyan")
    else:
        # A phase has no path that could be a prefix.
        name.append(node.path.removeprefix(f"{parent.path}.") if parent.class_name else node.path)
    if node.modules > (parent.modules if parent else 1):
        name.append(f"  ×{node.modules}", style="bold magenta")
    cells: list[Text] = [name, Text(node.class_name, style="dim"), Text(f"{node.calls:,}")]
    if whole is not None:
        share = node.total_ns / whole if whole and node.total_ns is not None else None
        cells += [Text(time_text(node.total_ns)), Text(share_text(share))]
    cells.append(Text(and_others(node.shapes), style="dim"))
    table.add_row(*cells)
    if depth == 0:
        return
    for place, child in enumerate(node.children, start=1):
        last = place == len(node.children)
        _add(
            table,
            child,
            below + ("└── " if last else "├── "),
            below + ("    " if last else "│   "),
            node,
            whole,
            None if depth is None else depth - 1,
        )
