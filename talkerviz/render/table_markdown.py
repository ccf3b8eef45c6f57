"""A table in GitHub's Markdown."""

from __future__ import annotations

from talkerviz.render.escape import markdown_cell
from talkerviz.render.table_cells import TableCells


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
