"""A summary as a rich table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from talkerviz.render.text import amount_text, share_text, time_text

_NUMBERS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("params", amount_text),
    "calls": ("calls", "{:,}".format),
    "total_ns": ("total", time_text),
    "self_ns": ("self", time_text),
    "mean_ns": ("mean", time_text),
    "p50_ns": ("p50", time_text),
    "p95_ns": ("p95", time_text),
    "share": ("share", share_text),
    "device_ns": ("device", time_text),
    "busy_ns": ("busy", time_text),
    "flops": ("FLOP", amount_text),
    "bytes": ("bytes", amount_text),
    "intensity": ("FLOP/byte", "{:.2f}".format),
    "of_peak": ("of peak", share_text),
    "memory_peak_bytes": ("memory", amount_text),
}
_UNMEASURED_LEFT_OUT = {*_NUMBERS, "bound"}
_OF_A_SINGLE_CALL = {"calls", "mean_ns", "p50_ns", "p95_ns"}  # always 1 or the total again
_NEVER_SHOWN = {"parameter_bytes"}
_ROOM_PERMITTING = {"class", "parameters", "mean_ns", "p50_ns", "p95_ns", "shapes"}


_WIDE = 120  # characters that all columns need
_COST_WIDE = 50  # and those of cost


def render_table(summary: pd.DataFrame, by: str, top: int | None = None, width: int = _WIDE) -> Table:
    """The first `top` rows, or all, of what `summarise(trace, by)` made; fewer columns where there is no room."""
    shown = summary if top is None else summary.head(top)
    left_out = len(summary) - len(shown)
    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        title=f"Time by {by}",
        title_justify="left",
        title_style="bold",
        caption=f"{left_out:,} more rows: --top {len(summary)}" if left_out else None,
        caption_justify="left",
        pad_edge=False,
    )
    with_cost = not summary["flops"].isna().all()
    narrow = width < _WIDE + (_COST_WIDE if with_cost else 0)
    omitted = _NEVER_SHOWN | (_OF_A_SINGLE_CALL if by == "call" else set()) | (_ROOM_PERMITTING if narrow else set())
    columns = [name for name in summary.columns if name not in omitted or name == by]
    # An unmeasured column would be empty from top to bottom.
    columns = [name for name in columns if name not in _UNMEASURED_LEFT_OUT or not summary[name].isna().all()]
    for name in columns:
        if name in _NUMBERS:
            table.add_column(_NUMBERS[name][0], justify="right", no_wrap=True)
        else:
            whole_number = name in ("call", "frame", "step")
            one_line = name != "module"
            table.add_column(name, justify="right" if whole_number else "left", overflow="fold", no_wrap=one_line)
    for row in shown[columns].itertuples(index=False):
        table.add_row(*(_cell(name, value) for name, value in zip(columns, row, strict=True)))
    return table


def _cell(name: str, value: Any) -> Text:
    # As Text, since names may hold what rich reads as markup.
    if name in _NUMBERS:
        text = Text("" if pd.isna(value) else _NUMBERS[name][1](value))
        if name == "share" and not pd.isna(value):
            text.stylize("bold red" if value >= 0.2 else "yellow" if value >= 0.05 else "")
        return text
    return Text("" if pd.isna(value) else str(value), style="dim" if name == "shapes" else "")
