"""A summary as comma-separated values."""

from __future__ import annotations

import html
import io
import re

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from talkerviz.render.escape import markdown_cell, one_line, spreadsheet_cell
from talkerviz.render.tables.cells import TableCells


def csv_table(summary: pd.DataFrame) -> bytes:
    """All of its columns in their base units; what was not measured is empty.

    Texts that a spreadsheet would take for a formula have an apostrophe before them.
    """
    # pandas takes eight times as long, which is seconds for a million calls.
    table = pa.Table.from_pandas(summary, preserve_index=False)
    return write_csv(table)


def write_csv(table: pa.Table) -> bytes:
    """Write a table as CSV, no text of which is a formula to a spreadsheet."""
    columns = [_texts(column) if _is_text(column.type) else column for column in table.columns]
    written = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns, [spreadsheet_cell(name) for name in table.column_names]), written)
    return written.getvalue()


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # By different texts, which are few: a million calls take no longer.
    known = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    chunks = []
    for chunk in known.chunks:
        cells = [None if text is None else spreadsheet_cell(text) for text in chunk.dictionary.to_pylist()]
        chunks.append(pa.array(cells, pa.string()).take(chunk.indices))
    return pa.chunked_array(chunks, pa.string())


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


_ROWS_OF_A_PAGE = 40
# What pdfLaTeX prints without further packages, of what is in tables.
_PLAIN = re.compile("[\\x00-\\u024f→µ…·×≥]*")


def latex_table(table: TableCells) -> str:
    """A `tabular`, or a `longtable` where it is more than a page; its title and notes are comments."""
    long = len(table.cells) > _ROWS_OF_A_PAGE
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
    # Behind the end of a row these would be read as its arguments.
    made = re.sub(r"(?m)^(?=\s*[\[*])", "{}", made)
    # Not every font has it.
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
    """The table below its title and above its notes."""
    names = [place for place, number in enumerate(table.numbers, start=1) if not number]
    left = ", ".join(f"{cell}:nth-child({place})" for place in names for cell in ("th", "td"))
    # pandas would cut long names.
    with pd.option_context("display.max_colwidth", None):
        rows = table.cells.to_html(index=False, border=0, escape=True)
    title = html.escape(one_line(table.title))
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f"<style>\n{_STYLE}{left} {{ text-align: left; }}\n</style></head><body>",
            f"<h1>{title}</h1>",
            rows,
            *(f"<p>{html.escape(one_line(note))}</p>" for note in table.notes),
            "</body></html>\n",
        ]
    )


def markdown_table(table: TableCells) -> str:
    """The table between its title and its notes, columns as wide in the source as they are when it is shown."""
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
    lines = [
        f"**{markdown_cell(table.title)}**",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (heading, rules, *rows)),
        "",
    ]
    for note in table.notes:
        lines += [markdown_cell(note), ""]
    return "\n".join(lines[:-1]) + "\n"
