"""A table in LaTeX."""

from __future__ import annotations

import re

from talkerviz.render.escape import one_line
from talkerviz.render.table_cells import TableCells

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
