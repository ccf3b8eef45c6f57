"""What differs between two runs, as a rich table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from talkerviz.graph.graph import Box
from talkerviz.render.escape import visible
from talkerviz.render.label import CHANGE_MARKS
from talkerviz.render.rich_table import plain_table

_STYLES = {"added": "green", "removed": "red", "changed": "yellow"}


def render_changes(changes: Sequence[Box]) -> Table:
    """One line a module or operation that only one run has, or that differs; `before ⇒ after` where it does."""
    table = plain_table()
    for column in ("", "module", "class", "shapes"):
        table.add_column(column, overflow="fold")
    for change in changes:
        if change.change is None:
            continue
        name = f"{change.path or change.name}{f'  {change.repeats}' if change.repeats else ''}"
        style = _STYLES[change.change]
        table.add_row(
            Text(CHANGE_MARKS[change.change], style=style),
            Text(visible(name), style=style),
            Text(visible(change.class_name)),
            Text(visible(change.shapes), style="dim"),
        )
    return table
