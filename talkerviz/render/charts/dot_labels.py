"""HTML-like Graphviz labels of a nested chart: boxes, groups, title and legend."""

from __future__ import annotations

from talkerviz.flowchart.model import Box, Graph
from talkerviz.render.charts.label_text import (
    EdgeStyle,
    box_lines,
    change_legend,
    edge_legend,
    error_line,
    facts_line,
    name_line,
)
from talkerviz.render.charts.palette import LOOKS, share_legend, style_colour
from talkerviz.render.escape import dot_html, shortened

_TABLE = 'BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="{}"'
_BAR_WIDTH = 100  # points
_BAR = "#9b3324"
_BAR_REST = "#d5dbe3"


def box_label(box: Box) -> str:
    """Format a box's label: name, class, shapes, times, and a bar for its share of the time."""
    bold = box.kind not in ("operation", "more", "input")
    name = dot_html(name_line(box)) or " "
    name = f"<B>{name}</B>" if bold else f'<FONT POINT-SIZE="10">{name}</FONT>'
    cells = [name, *(_small(line) for line in box_lines(box))]
    if box.share is not None and box.kind == "module":
        cells.append(_bar(box.share))
    return f"<{_table(cells)}>"


def group_label(box: Box) -> str:
    """Format a group's heading."""
    name = f'<B><FONT POINT-SIZE="{14 if box.kind == "phase" else 11}">{dot_html(name_line(box)) or " "}</FONT></B>'
    first = f"{name} {_small(shortened(box.class_name))}" if box.class_name else name
    lines = [first, *(_small(line) for line in (error_line(box), facts_line(box)) if line)]
    rows = "".join(f'<TR><TD ALIGN="LEFT">{line}</TD></TR>' for line in lines)
    return f"<<TABLE {_TABLE.format(1)}>{rows}</TABLE>>"


def chart_label(graph: Graph, scale: float) -> str:
    """Format the chart's title, legend and notes, with a font size that matches the chart's size."""
    name, _, what = graph.title.partition(", ")
    cells = [f'<FONT POINT-SIZE="{18 * scale:.0f}"><B>{dot_html(shortened(name)) or " "}</B></FONT>']
    size = round(9 * scale)
    # On a second line: one wider than the legend would stretch it.
    cells += [_small(shortened(what, 80), round(11 * scale))] if what else []
    legend = _legend(graph, size)
    if legend:
        cells.append(f"<TABLE {_TABLE.format(4)}><TR>{''.join(f'<TD>{cell}</TD>' for cell in legend)}</TR></TABLE>")
    cells += [_small(note, size) for note in graph.notes if note]
    return f"<{_table(cells, 4)}>"


def _legend(graph: Graph, size: int) -> list[str]:
    cells = []
    changes = change_legend(graph)
    if changes:
        cells.append(_chips("", changes, size))
    elif graph.timed:
        shares = {f"heat{heat}": text for heat, text in enumerate(share_legend())}
        cells.append(_chips("share of the time", shares, size))
    for style, text in edge_legend(graph).items():
        row = f"<TD>{_line(style)}</TD><TD>{_small(text, size)}</TD>"
        cells.append(f"<TABLE {_TABLE.format(3)}><TR>{row}</TR></TABLE>")
    return cells


def _chips(title: str, texts: dict[str, str], size: int) -> str:
    head = f"<TD>{_small(title, size)}</TD>" if title else ""
    cells = "".join(
        f'<TD BGCOLOR="{LOOKS[look].fill}" BORDER="1" COLOR="{LOOKS[look].border}" CELLPADDING="3">'
        f'<FONT POINT-SIZE="{size}" COLOR="{LOOKS[look].ink}">{dot_html(text)}</FONT></TD>'
        for look, text in texts.items()
    )
    return f"<TABLE {_TABLE.format(3)}><TR>{head}{cells}</TR></TABLE>"


def _line(style: EdgeStyle) -> str:
    """Draw a piece of an arrow's line from table cells, which need no characters of a font."""
    height = 3 if style == "state" else 2
    dash, gap, number = (30, 0, 1) if style == "flow" else (7, 4, 3)
    cell = f'<TD FIXEDSIZE="TRUE" WIDTH="{{}}" HEIGHT="{height}"{{}}></TD>'
    dashes = [cell.format(dash, f' BGCOLOR="{style_colour(style)}"')] * number
    size = f'FIXEDSIZE="TRUE" WIDTH="{number * (dash + gap) - gap}" HEIGHT="{height}"'
    return f"<TABLE {_TABLE.format(0)} {size}><TR>{cell.format(gap, '').join(dashes)}</TR></TABLE>"


def _bar(share: float) -> str:
    filled = round(min(max(share, 0), 1) * _BAR_WIDTH)
    widths = ((filled, _BAR), (_BAR_WIDTH - filled, _BAR_REST))
    cells = "".join(
        f'<TD FIXEDSIZE="TRUE" WIDTH="{width}" HEIGHT="4" BGCOLOR="{colour}"></TD>' for width, colour in widths if width
    )
    # A fixed size keeps the cells from spreading over the width of the box.
    return f'<TABLE {_TABLE.format(0)} FIXEDSIZE="TRUE" WIDTH="{_BAR_WIDTH}" HEIGHT="4"><TR>{cells}</TR></TABLE>'


def _table(cells: list[str], padding: int = 1) -> str:
    return f"<TABLE {_TABLE.format(padding)}>{''.join(f'<TR><TD>{cell}</TD></TR>' for cell in cells)}</TABLE>"


def _small(text: str, size: int = 9) -> str:
    return f'<FONT POINT-SIZE="{size}">{dot_html(text)}</FONT>'
