"""Latency table as a rich table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pandas as pd
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from talkerviz.render.column_formats import is_number, quantity, shown_columns
from talkerviz.render.escape import visible
from talkerviz.render.terminal.console import COLUMN_GAP, fitting_columns, plain_table

# Columns that are left out if there is no room, in this order.
_OPTIONAL_COLUMNS = (
    "host",
    "collective_ns",
    "shapes",
    "class",
    "intensity",
    "p50_ns",
    "p99_ns",
    "parameters",
    "p95_ns",
    "mean_ns",
    "memory_peak_bytes",
    "busy_ns",
    "bytes",
    "predictor_ns",
    "talker_ns",
    "codes_per_second",
    "flops",
    "calls",
    "bound",
    "of_peak",
)
_OPTIONAL_SIDE_COLUMNS = ("calls", "share", "peers", "bytes", "transfer_ns")
_MIN_PATH_CHARACTERS = 32  # longer paths are folded
_WIDE = 200


def render_table(
    summary: pd.DataFrame, by: str, top: int | None = None, width: int = _WIDE, title: str | None = None
) -> Table:
    """Render the first `top` rows of a summary, or all; some columns are left out if there is no room."""
    shown = summary if top is None else summary.head(top)
    left_out = len(summary) - len(shown)
    more = f"{left_out:,} more rows: --top {len(summary)}" if left_out else None
    every = summary.attrs.get("device_every", 1)
    sampled = f"; device time from one frame in {every:,}" if every > 1 else ""
    table = plain_table(f"{title or f'Time by {by}'}{sampled}", more)
    columns = {name: [_cell(name, value) for value in shown[name]] for name in shown_columns(summary, by)}
    widths = {name: _room(name, cells) for name, cells in columns.items()}
    unneeded = _OPTIONAL_SIDE_COLUMNS if any(map(_side, columns)) else _OPTIONAL_COLUMNS
    # The column of the rows' names always stays.
    names = fitting_columns(widths, unneeded, width, lambda name: "" if name == by else _measure(name))
    for name in names:
        numeric = is_number(name)
        table.add_column(
            _heading(name), justify="right" if numeric else "left", overflow="fold", no_wrap=name not in ("module", by)
        )
    cells = [columns[name] for name in names]
    if len(shown) and _fit_unfolded(names, cells, width):
        # rich lays out every cell by itself: hundreds of rows take a second. One cell per column is fast.
        cells = [[Text("\n").join(column)] for column in cells]
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    return table


def _fit_unfolded(names: Sequence[str], columns: Sequence[Sequence[Text]], width: int) -> bool:
    """Return True if every cell fits on one line in a table of this width."""
    headings = (_heading(name).split("\n") for name in names)
    widest = (
        max(*map(cell_len, heading), *(cell.cell_len for cell in column))
        for heading, column in zip(headings, columns, strict=True)
    )
    return sum(widest) + COLUMN_GAP * len(names) <= width and not any("\n" in cell.plain for cell in chain(*columns))


def _side(name: str) -> str:
    return name.rpartition(".")[0]  # `decode` of `decode.share`


def _measure(name: str) -> str:
    return name.rpartition(".")[2]


def _heading(name: str) -> str:
    what = quantity(_measure(name))
    # Stacked words take less room.
    return visible("\n".join([*_side(name).split(), what.heading]) if what else name)


def _room(name: str, cells: list[Text]) -> int:
    widest = max(*map(len, _heading(name).split("\n")), *map(len, cells), 0)
    return min(widest, _MIN_PATH_CHARACTERS) if name == "module" else widest


def _cell(name: str, value: Any) -> Text:
    # Text, since names may contain rich's markup.
    if pd.isna(value):
        return Text("")
    what = quantity(name)
    if what is None:
        return Text(visible(str(value)), style="dim" if name == "shapes" else "")
    text = Text(what.text(value))
    if _measure(name) == "share":
        text.stylize("bold red" if value >= 0.2 else "yellow" if value >= 0.05 else "")
    return text
