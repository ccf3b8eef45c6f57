"""Table of two runs side by side, for the terminal and as cells for other formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from talkerviz.analysis.compare import PROCESS_NOISE, is_beyond_noise
from talkerviz.analysis.structure import StructureDiff
from talkerviz.render.charts.label_text import CHANGE_MARKS
from talkerviz.render.escape import visible
from talkerviz.render.tables.cells import TableCells
from talkerviz.render.terminal.console import COLUMN_GAP, break_name, fitting_columns, plain_table
from talkerviz.render.text import time_text

TITLE = "Time of a typical frame, before and after"
CHANGES_TITLE = "Modules that differ"

_MARKS = {"new": "+", "vanished": "−", "changed": "~", "wrapper": "", "same": ""}
_STYLES = {"new": "green", "vanished": "red", "changed": "yellow", "wrapper": "", "same": ""}
_NUMBERS = {"self before", "self after", "change", "95 % interval", "total before", "total after", "calls"}
_ALL = "all of it"
# Columns that are left out if there is no room, in this order; changes are also listed below the table.
_OPTIONAL_COLUMNS = ("differs", "total before", "total after", "calls", "95 % interval", "self before", "verdict")
_MIN_NAME_CHARACTERS = 32  # longer names are folded


def put_together(phases: pd.DataFrame, rows: pd.DataFrame, by: str, top: int) -> pd.DataFrame:
    """Stack the rows of `compare(..., "phase")` on the first `top` rows of `compare(..., by)`."""
    if by == "phase":
        return phases
    whole = phases.assign(modules=1)
    whole["module" if by == "pattern" else by] = _ALL
    both: pd.DataFrame = pd.concat([whole, rows.head(top)], ignore_index=True)
    return both


def comparison_cells(compared: pd.DataFrame, by: str, notes: tuple[str, ...]) -> TableCells:
    """Format the rows of `put_together`."""
    rows = [_cells(row, by) for row in compared.to_dict("records")]
    cells = pd.DataFrame(rows, columns=list(rows[0]) if rows else [])
    return TableCells(TITLE, notes, cells, tuple(name in _NUMBERS for name in cells.columns))


def render_comparison(compared: pd.DataFrame, by: str, top: int, left_out: int, width: int) -> Table:
    """Render the rows of `put_together` for the terminal, significant changes coloured.

    Args:
        compared: rows of the table.
        by: rows below those of the phases.
        top: maximum number of these rows.
        left_out: number of rows beyond `top`.
        width: characters of a line; some columns are left out if there is no room.
    """
    more = f"{left_out:,} more rows: --top {top + left_out}" if left_out else None
    table = plain_table(TITLE, more)
    cells = comparison_cells(compared, by, ()).cells
    names = fitting_columns({name: _room(name, cells[name]) for name in map(str, cells)}, _OPTIONAL_COLUMNS, width)
    cells = cells[names].copy()
    named = next((name for name in ("module", "class", "layer") if name in names), None)
    if named is not None:
        others = sum(_room(name, cells[name]) + COLUMN_GAP for name in names if name != named)
        cells[named] = [break_name(text, max(_MIN_NAME_CHARACTERS, width - others)) for text in cells[named]]
    for name in names:
        number = name in _NUMBERS
        table.add_column(
            name,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number or name == "phase",
        )
    for (_, texts), (_, row) in zip(cells.iterrows(), compared.iterrows(), strict=True):
        table.add_row(*(Text(visible(text), style=_style(str(name), row)) for name, text in texts.items()))
    return table


def _room(name: str, cells: pd.Series) -> int:
    widest = max(len(name), *map(len, cells), 0)
    return min(widest, _MIN_NAME_CHARACTERS) if name in ("module", "class", "layer", "differs") else widest


def notes_on_comparison(phases: pd.DataFrame) -> tuple[str, ...]:
    """List notes on the numbers of `compare(..., "phase")`."""
    counts = [f"{row.phase} {row.frames_before:,} and {row.frames_after:,}" for row in phases.itertuples()]
    notes = [
        f"Medians over frames, without the first of three or more if nothing warmed up before: {'; '.join(counts)}.",
        f"The interval is of self time, on the {'device' if phases.attrs['clock'] == 'device' else 'host'}'s clock. It"
        " knows how frames differ in these two recordings, not how one process or machine differs from the next:"
        f" changes up to {PROCESS_NOISE * 100:g} % are within noise.",
    ]
    single = phases[phases["low"].isna() & phases["change"].notna()]["phase"]
    if len(single):
        notes.append(f"No interval for {', '.join(single)}: it takes two frames in both. `trace --repeat` gives more.")
    return tuple(notes)


def percent_text(change: Any) -> str:
    """Format a share of 1 as `+12.3 %`; empty for a missing value."""
    return "" if pd.isna(change) else f"{_signed(change)} %"


def interval_text(low: Any, high: Any) -> str:
    """Format an interval as `+1.2 to +5.6 %`; empty for a missing one."""
    return "" if pd.isna(low) else f"{_signed(low)} to {_signed(high)} %"


def _signed(share: float) -> str:
    return "∞" if np.isinf(share) else f"{share * 100:+,.1f}".replace("-", "−")


def _cells(row: dict[Any, Any], by: str) -> dict[str, str]:
    calls = [f"{row[f'calls_{side}']:,.4g}" for side in ("before", "after")]
    named = "module" if by == "pattern" else by
    repeated = by == "pattern" and row["modules"] > 1
    classes = [row["class"]] if named == "module" and "⇒" in str(row["class"]) else []
    shapes = [row["shapes_before"], row["shapes_after"]]
    return {
        " ": _MARKS[row["status"]],
        "phase": row["phase"],
        **({} if by == "phase" else {named: f"{row[named]}  {row['modules']:,}×" if repeated else row[named]}),
        "self before": time_text(row["self_before_ns"]),
        "self after": time_text(row["self_after_ns"]),
        "change": percent_text(row["change"]),
        "verdict": _verdict(row),
        "95 % interval": interval_text(row["low"], row["high"]),
        "total before": time_text(row["total_before_ns"]),
        "total after": time_text(row["total_after_ns"]),
        "calls": calls[0] if calls[0] == calls[1] else " ⇒ ".join(calls),
        "differs": "; ".join([*classes, *([" ⇒ ".join(shape or "–" for shape in shapes)] if any(shapes) else [])]),
    }


def _verdict(row: dict[Any, Any]) -> str:
    """Say in a word whether a change of time is certain."""
    if row["status"] in ("new", "vanished", "wrapper") or pd.isna(row["change"]):
        return ""
    if pd.isna(row["low"]):
        return "one frame"
    if not row["significant"]:
        return "too few frames" if is_beyond_noise(row) else "within noise"
    return "slower" if row["change"] > 0 else "faster"


def _style(name: str, row: pd.Series) -> str:
    if name in ("change", "verdict", "95 % interval"):
        if not row["significant"]:
            return "dim"
        return "bold red" if row["change"] > 0 else "bold green"
    return _STYLES[row["status"]] if name in (" ", "module", "class", "layer") else ""


_CHANGE_STYLES = {"added": "green", "removed": "red", "changed": "yellow"}


def changes_cells(structure: StructureDiff) -> TableCells:
    """Format the modules that differ, a row for all that differ in one way."""
    rows = [
        {
            " ": CHANGE_MARKS[change.kind],
            "module": change.module + (f"  {len(change.modules):,}×" if len(change.modules) > 1 else ""),
            "class": change.class_name,
            "shapes": change.shapes,
            "calls": change.calls,
            "operations": change.operations,
        }
        for change in structure.changes
    ]
    cells = pd.DataFrame(rows, columns=[" ", "module", "class", "shapes", "calls", "operations"])
    shown = [name for name in cells.columns if name in (" ", "module", "class") or (cells[name] != "").any()]
    notes = (structure.summary, *structure.notes)
    return TableCells(CHANGES_TITLE, notes, cells[shown], tuple(False for _ in shown))


def render_changes(structure: StructureDiff) -> Table:
    """Render the modules that differ for the terminal: name and class, and below what differs."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for change in structure.changes:
        style = _CHANGE_STYLES[change.kind]
        several = f"  {len(change.modules):,}×" if len(change.modules) > 1 else ""
        line = Text(visible(f"{change.module}{several}"), style=style)
        line.append(visible(f"  {change.class_name}"), style="" if "⇒" in change.class_name else "dim")
        differs = [change.shapes if change.kind != "changed" or "⇒" in change.shapes else ""]
        differs += [f"{change.calls} calls a frame" if change.calls else "", change.operations]
        if texts := [text for text in differs if text]:
            line.append(visible("\n  " + "; ".join(texts)), style="default")
        table.add_row(Text(CHANGE_MARKS[change.kind], style=style), line)
    return table
