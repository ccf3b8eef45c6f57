"""Writers of tables: CSV, JSON, LaTeX, HTML, Markdown."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from talkerviz.render.escape import markdown_cell, one_line, spreadsheet_cell
from talkerviz.render.tables.cells import TableCells


def csv_table(summary: pd.DataFrame) -> bytes:
    """Write all columns as CSV, in base units; empty if not measured.

    Texts that a spreadsheet would take for a formula get an apostrophe in front.
    """
    # pandas takes eight times as long: seconds for a million calls.
    table = pa.Table.from_pandas(summary, preserve_index=False)
    return write_csv(table)


def write_csv(table: pa.Table) -> bytes:
    """Write an Arrow table as CSV, with an apostrophe before texts that look like formulas."""
    columns = [_texts(column) if _is_text(column.type) else column for column in table.columns]
    written = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns, [spreadsheet_cell(name) for name in table.column_names]), written)
    return written.getvalue()


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # Escape the distinct texts, which are few even for a million calls.
    known = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    chunks = []
    for chunk in known.chunks:
        cells = [None if text is None else spreadsheet_cell(text) for text in chunk.dictionary.to_pylist()]
        chunks.append(pa.array(cells, pa.string()).take(chunk.indices))
    return pa.chunked_array(chunks, pa.string())


_DECIMALS = 15  # pandas' maximum
_ROWS_EACH = 1 << 16  # rows whose text pandas holds in memory at a time


def json_table(summary: pd.DataFrame) -> bytes:
    """Write all columns as a JSON list, an object and a line per row, in base units; `null` if not measured."""
    parts = []
    for first in range(0, len(summary), _ROWS_EACH):
        rows = summary.iloc[first : first + _ROWS_EACH]
        lines = rows.to_json(orient="records", lines=True, double_precision=_DECIMALS, force_ascii=False)
        # Line breaks in texts are escaped, so these are between rows.
        parts.append(lines.rstrip("\n").replace("\n", ",\n").encode())
    return b"[\n" + b",\n".join(parts) + b"\n]\n"


_PAGE_ROWS = 40  # rows that fit on a page
# Characters that pdfLaTeX prints without further packages.
_PLAIN = re.compile("[\\x00-\\u024f→µ…·×≥]*")


def latex_table(table: TableCells) -> str:
    """Write a `tabular`, or a `longtable` if it exceeds a page; title and notes are comments."""
    long = len(table.cells) > _PAGE_ROWS
    packages = "booktabs, longtable" if long else "booktabs"
    comments = [table.title, *table.notes, f"Needs \\usepackage{{{packages}}}."]
    if not _PLAIN.fullmatch("".join(map(str, table.cells.to_numpy().flat))):
        comments.append("Not all letters are Latin ones: LuaLaTeX and a font that has them print all.")
    made = table.cells.to_latex(
        index=False,
        escape=True,
        longtable=long,
        column_format="".join("r" if number else "l" for number in table.numbers),
    )
    # At the start of a row LaTeX would take these for arguments of the line break before.
    made = re.sub(r"(?m)^(?=\s*[\[*])", "{}", made)
    # Not every font has the arrow.
    return "".join(f"% {' '.join(one_line(line).split())}\n" for line in comments) + made.replace("→", r"$\to$")


_STYLE = """\
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #1f2328; background: #fff; }
h1 { font-size: 1.15rem; }
table { border-collapse: collapse; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: #f6f8fa; border-bottom: 2px solid #d1d9e0; }
td { border-bottom: 1px solid #eaeef2; }
tbody tr:hover { background: #f6f8fa; }
p { color: #59636e; }
"""


def html_table(table: TableCells) -> str:
    """Write a page with the title, the table and its notes."""
    return html_tables(table.title, (table,))


def html_tables(title: str, tables: Sequence[TableCells]) -> str:
    """Write a page with several tables, each below its title and above its notes; empty ones are their notes alone."""
    left = ", ".join(
        f".t{number} {cell}:nth-child({place})"
        for number, table in enumerate(tables)
        for place, is_number in enumerate(table.numbers, start=1)
        if not is_number
        for cell in ("th", "td")
    )
    parts = []
    for number, table in enumerate(tables):
        # pandas truncates long names by default.
        with pd.option_context("display.max_colwidth", None):
            rows = table.cells.to_html(index=False, border=0, escape=True, classes=f"t{number}")
        parts += [f"<h1>{html.escape(one_line(table.title))}</h1>", *([rows] if len(table.cells) else [])]
        parts += [f"<p>{html.escape(one_line(note))}</p>" for note in table.notes]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(one_line(title))}</title>',
            f"<style>\n{_STYLE}{left} {{ text-align: left; }}\n</style></head><body>",
            *parts,
            "</body></html>\n",
        ]
    )


def markdown_table(table: TableCells) -> str:
    """Write the title, the table and its notes, with aligned columns in the source."""
    columns = [[markdown_cell(heading), *map(markdown_cell, table.cells[heading])] for heading in table.cells.columns]
    widths = [max(3, *map(len, column)) for column in columns]
    rules = [
        "-" * (width - 1) + ":" if number else "-" * width for width, number in zip(widths, table.numbers, strict=True)
    ]
    padded = [
        [cell.rjust(width) if number else cell.ljust(width) for cell in column]
        for column, width, number in zip(columns, widths, table.numbers, strict=True)
    ]
    heading, *rows = zip(*padded, strict=True)
    lines = [f"**{markdown_cell(table.title)}**", ""]
    if rows:
        lines += [*(f"| {' | '.join(cells)} |" for cells in (heading, rules, *rows)), ""]
    for note in table.notes:
        lines += [markdown_cell(note), ""]
    return "\n".join(lines[:-1]) + "\n"
