"""Cells of a printed table, with units in the headings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from talkerviz.render.column_formats import Scales, is_number, quantity, shown_columns
from talkerviz.render.escape import one_line


@dataclass(frozen=True)
class TableCells:
    """Texts of a table, not yet escaped.

    Attributes:
        title: title above the table.
        notes: notes on its numbers.
        cells: rows by heading, such as `total [ms]`; empty if not measured.
        numbers: True for each column of numbers.
    """

    title: str
    notes: tuple[str, ...]
    cells: pd.DataFrame
    numbers: tuple[bool, ...]


def table_cells(summary: pd.DataFrame, by: str, title: str, notes: tuple[str, ...]) -> TableCells:
    """Format a table of `summarise` or `pivot`, with one unit for all times and one for all sizes."""
    names = shown_columns(summary, by)
    kinds = {name: what for name in names if (what := quantity(name))}
    units = {
        scales: _unit(scales, summary[[name for name, what in kinds.items() if what.scales == scales]])
        for scales in {what.scales for what in kinds.values()}
    }
    columns: dict[str, list[str]] = {}
    for name in names:
        if what := kinds.get(name):
            scale, unit = units[what.scales]
            # Counts in base units, such as nanoseconds, are whole.
            decimals = 0 if scale == 1 and len(what.scales) > 1 else what.decimals
            columns[f"{what.heading} [{unit}]" if unit else what.heading] = [
                "" if pd.isna(value) else f"{value / scale:,.{decimals}f}" for value in summary[name]
            ]
        else:
            columns[name] = ["" if pd.isna(value) else one_line(str(value)) for value in summary[name]]
    return TableCells(title, notes, pd.DataFrame(columns), tuple(map(is_number, names)))


def _unit(scales: Scales, values: pd.DataFrame) -> tuple[float, str]:
    """Choose the largest unit in which the median value is at least 1."""
    numbers = values.to_numpy(float, na_value=np.nan)
    some = numbers[numbers > 0]
    middle = float(np.median(some)) if len(some) else 0.0
    return next((scale for scale in scales if middle >= scale[0]), scales[-1])
