"""A summary as JSON."""

from __future__ import annotations

import pandas as pd

_DECIMALS = 15  # the most that pandas writes
_ROWS_EACH = 1 << 16  # pandas holds the text of so many at a time


def json_table(summary: pd.DataFrame) -> bytes:
    """A list of one object a row, each on a line, all columns in base units; what was not measured is `null`."""
    parts = []
    for first in range(0, len(summary), _ROWS_EACH):
        rows = summary.iloc[first : first + _ROWS_EACH]
        lines = rows.to_json(orient="records", lines=True, double_precision=_DECIMALS, force_ascii=False)
        # A line break within a text is escaped, so these are the ones between rows.
        parts.append(lines.rstrip("\n").replace("\n", ",\n").encode())
    return b"[\n" + b",\n".join(parts) + b"\n]\n"
