"""A table as a page of HTML that needs nothing else."""

from __future__ import annotations

import html

import pandas as pd

from talkerviz.render.escape import one_line
from talkerviz.render.table_cells import TableCells

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
