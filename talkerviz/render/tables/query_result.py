"""Result of an SQL query in all formats."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from talkerviz.render.escape import one_line
from talkerviz.render.tables.cells import TableCells
from talkerviz.render.tables.writers import markdown_table, write_csv
from talkerviz.render.terminal.console import plain_table

MOST_ROWS = 200
"""Rows that `answer_table` shows, a few screens."""
_PLAIN = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string)


def answer_cells(answer: pa.Table, title: str = "") -> TableCells:
    """Format the rows as text, numbers with commas between thousands."""
    answer = _whole_numbers(answer)
    columns = {name: [_cell(value) for value in answer[name].to_pylist()] for name in answer.column_names}
    numbers = tuple(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in answer.schema.types)
    return TableCells(title, (), pd.DataFrame(columns, dtype=object), numbers)


def answer_table(answer: pa.Table) -> Table:
    """Render the first rows for the terminal."""
    shown = answer_cells(answer.slice(0, MOST_ROWS))
    table = plain_table()
    for name, number in zip(shown.cells.columns, shown.numbers, strict=True):
        table.add_column(Text(one_line(name)), justify="right" if number else "left", overflow="fold")
    for row in shown.cells.itertuples(index=False, name=None):
        table.add_row(*map(Text, row))
    return table


def render_answer(answer: pa.Table, fmt: str, title: str) -> bytes:
    """Write the rows in one of `ANSWERS`.

    Raises:
        ValueError: a column of a type that the format cannot hold.
    """
    return ANSWERS[fmt](answer, title)


def _csv(answer: pa.Table, title: str) -> bytes:
    return write_csv(_plain(answer))


def _json(answer: pa.Table, title: str) -> bytes:
    rows = [json.dumps(_json_value(row), ensure_ascii=False) for row in _whole_numbers(answer).to_pylist()]
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode(errors="replace")


def _markdown(answer: pa.Table, title: str) -> bytes:
    return markdown_table(answer_cells(answer, one_line(title))).encode(errors="replace")


def _parquet(answer: pa.Table, title: str) -> bytes:
    written = io.BytesIO()
    try:
        pq.write_table(_whole_numbers(answer), written, compression="zstd")
    except pa.ArrowException as error:
        raise ValueError(f"-f parquet: {error}") from error
    return written.getvalue()


ANSWERS: Mapping[str, Callable[[pa.Table, str], bytes]] = {
    "csv": _csv,
    "json": _json,
    "markdown": _markdown,
    "parquet": _parquet,
}
"""Writers by format; each takes the result and the query."""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return one_line(_text(value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.6g}"


def _text(value: Any) -> str:
    return json.dumps(_json_value(value), ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _json_value(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _whole_numbers(answer: pa.Table) -> pa.Table:
    """Cast decimals, as which DuckDB returns sums of integers, to int64 or float64."""
    for place, (name, kind) in enumerate(zip(answer.column_names, answer.schema.types, strict=True)):
        if pa.types.is_decimal(kind):
            try:
                narrow = answer[name].cast(pa.int64() if kind.scale == 0 else pa.float64())
            except pa.ArrowInvalid:
                narrow = answer[name].cast(pa.float64())
            answer = answer.set_column(place, name, narrow)
    return answer


def _plain(answer: pa.Table) -> pa.Table:
    """Replace lists and structs, which CSV cannot hold, by their text."""
    answer = _whole_numbers(answer)
    for place, (name, kind) in enumerate(zip(answer.column_names, answer.schema.types, strict=True)):
        if not any(is_kind(kind) for is_kind in _PLAIN):
            texts = [None if value is None else _text(value) for value in answer[name].to_pylist()]
            answer = answer.set_column(place, name, pa.array(texts, pa.string()))
    return answer
