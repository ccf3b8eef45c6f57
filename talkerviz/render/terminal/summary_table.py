"""Latency table as a rich table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import pandas as pd
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from talkerviz.render.column_formats import is_number, quantity, shown_columns
from talkerviz.render.escape import visible
from talkerviz.render.terminal.console import COLUMN_GAP, break_name, fitting_columns, plain_table

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
    "uncounted",
    "flops",
    "calls",
    "bound",
    "of_peak",
)
_OPTIONAL_SIDE_COLUMNS = ("calls", "share", "peers", "bytes", "transfer_ns")
_MIN_PATH_CHARACTERS = 32  # longer paths are folded
_WIDE = 200

_Cell = tuple[str, str]
"""Text of a cell and its style."""


def render_table(
    summary: pd.DataFrame, by: str, top: int | None = None, width: int = _WIDE, title: str | None = None
) -> RenderableType:
    """Render the first `top` rows of a summary, or all; some columns are left out if there is no room."""
    shown = summary if top is None else summary.head(top)
    left_out = len(summary) - len(shown)
    more = f"{left_out:,} more rows: --top {len(summary)}" if left_out else None
    every = summary.attrs.get("device_every", 1)
    sampled = f"; device time from one frame in {every:,}" if every > 1 else ""
    columns = {name: _cells(name, shown[name]) for name in shown_columns(summary, by)}
    widths = {name: _room(name, cells) for name, cells in columns.items()}
    unneeded = _OPTIONAL_SIDE_COLUMNS if any(map(_side, columns)) else _OPTIONAL_COLUMNS
    # The column of the rows' names always stays.
    names = fitting_columns(widths, unneeded, width, lambda name: "" if name == by else _measure(name))
    columns = {name: columns[name] for name in names}
    if "module" in columns:
        others = sum(widths[name] + COLUMN_GAP for name in names if name != "module")
        room = max(_MIN_PATH_CHARACTERS, width - others - 1)
        columns["module"] = [(break_name(text, room), style) for text, style in columns["module"]]
    unfolded = _unfolded_widths(columns) if len(shown) else {}
    fits = bool(unfolded) and sum(unfolded.values()) + COLUMN_GAP * len(names) <= width
    table = plain_table(f"{title or f'Time by {by}'}{sampled}", None if fits else more)
    for name in names:
        table.add_column(
            _heading(name),
            justify="right" if is_number(name) else "left",
            overflow="fold",
            no_wrap=name not in ("module", by),
            width=unfolded[name] if fits else None,
        )
    if fits:
        return _UnfoldedRows(table, columns, unfolded, more)
    # Text, since names may contain rich's markup.
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(Text(text, style) for text, style in row))
    return table


class _UnfoldedRows:
    """Rows whose cells all fit on a line, below the header that rich lays out; rich takes a second for 300 rows."""

    def __init__(
        self, header: Table, columns: Mapping[str, Sequence[_Cell]], widths: Mapping[str, int], caption: str | None
    ) -> None:
        self._header = header
        self._columns = columns
        self._widths = widths
        self._caption = caption

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        *header, bottom = Segment.split_lines(console.render(self._header, options))
        for line in header:
            yield from (*line, Segment.line())
        styles = {style: console.get_style(style) for _, style in chain(*self._columns.values()) if style}
        for row in zip(*self._columns.values(), strict=True):
            plain = " "
            for (name, width), (text, style) in zip(self._widths.items(), row, strict=True):
                padding = " " * (width - cell_len(text))
                before, after = (padding, "") if is_number(name) else ("", padding)
                if style:
                    yield Segment(plain + before)
                    yield Segment(text, styles[style])
                    plain = after + " " * COLUMN_GAP
                else:
                    plain += before + text + after + " " * COLUMN_GAP
            yield Segment(plain[: 1 - COLUMN_GAP])
            yield Segment.line()
        yield from (*bottom, Segment.line())
        if self._caption:
            caption = Text(self._caption, "table.caption")
            yield from console.render(caption, options.update(width=Segment.get_line_length(bottom), justify="left"))


def _unfolded_widths(columns: Mapping[str, Sequence[_Cell]]) -> dict[str, int]:
    """Return the width of each column in characters; empty if a cell has several lines."""
    if any("\n" in text for text, _ in chain(*columns.values())):
        return {}
    return {
        name: max(cell_len(text) for text in (*_heading(name).split("\n"), *(text for text, _ in cells)))
        for name, cells in columns.items()
    }


def _side(name: str) -> str:
    return name.rpartition(".")[0]  # `decode` of `decode.share`


def _measure(name: str) -> str:
    return name.rpartition(".")[2]


def _heading(name: str) -> str:
    what = quantity(_measure(name))
    # Stacked words take less room.
    return visible("\n".join([*_side(name).split(), what.heading]) if what else name)


def _room(name: str, cells: Sequence[_Cell]) -> int:
    widest = max(*map(len, _heading(name).split("\n")), *(len(text) for text, _ in cells), 0)
    return min(widest, _MIN_PATH_CHARACTERS) if name == "module" else widest


def _cells(name: str, values: pd.Series) -> list[_Cell]:
    what, is_share = quantity(name), _measure(name) == "share"
    missing = values.isna().tolist()
    if what is None:
        style = "dim" if name == "shapes" else ""
        return [("" if none else visible(str(value)), style) for value, none in zip(values, missing, strict=True)]
    return [
        ("", "") if none else (what.text(value), _share_style(value) if is_share else "")
        for value, none in zip(values, missing, strict=True)
    ]


def _share_style(share: float) -> str:
    return "bold red" if share >= 0.2 else "yellow" if share >= 0.05 else ""
