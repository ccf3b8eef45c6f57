"""Display of a trace at the end of a notebook's cell: a picture and a table."""

from __future__ import annotations

import html
import re
from base64 import b64encode
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

from talkerviz.analysis.summary import summarise
from talkerviz.flowchart.builder import build_graph
from talkerviz.flowchart.model import Graph, View
from talkerviz.render.charts.mermaid import render_mermaid
from talkerviz.render.escape import markdown
from talkerviz.render.notes import notes_on
from talkerviz.render.registry import render_graph
from talkerviz.render.tables.cells import TableCells, table_cells
from talkerviz.render.tables.writers import markdown_table
from talkerviz.trace.trace import TraceRecord

_VIEW = View(max_nodes=24)
_ROWS = 10
_DETAILS = ["parameters", "p50_ns", "p95_ns", "p99_ns"]
# Parts of an SVG that an image does not show: comments, tooltips, links.
_UNSEEN = re.compile(r"<!--.*?-->\n?|<title>[^<]*</title>\n?|</?a\b[^>]*>\n?", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_DIGITS = re.compile(r"(?<=\.\d)\d+")
_WIDTH = re.compile(r'<svg width="([\d.]+)pt"')

_Part = TypeVar("_Part")


def mimebundle(
    trace: TraceRecord, include: Collection[str] | None = None, exclude: Collection[str] | None = None
) -> dict[str, str]:
    """Return a trace's display in Jupyter, by MIME type: HTML, SVG, Markdown with a Mermaid chart, a line of text.

    The chart is folded to two dozen boxes. Nothing here raises: a part that cannot be made is left out, with the reason
    in a line.

    Args:
        trace: trace to display.
        include: MIME types to return; empty for all.
        exclude: MIME types to leave out.
    """
    wanted = {"text/plain", "text/html", "text/markdown", "image/svg+xml"}
    wanted = (wanted & set(include) if include else wanted) - set(exclude or ())
    bundle, failed = {"text/plain": repr(trace)}, list[str]()
    if wanted - {"text/plain"}:
        graph = _try_to_make("chart", lambda: build_graph(trace, _VIEW), failed)
        picture = None if graph is None else _try_to_make("picture", partial(_picture, graph), failed)
        cells = _try_to_make("table", partial(_cells, trace), failed)
        if picture:
            bundle["image/svg+xml"] = picture
        bundle["text/html"] = _html(trace, picture, cells, failed)
        chart = None if graph is None else _try_to_make("Mermaid chart", partial(render_mermaid, graph), failed)
        bundle["text/markdown"] = _markdown(trace, chart, cells, failed)
    return {kind: text for kind, text in bundle.items() if kind in wanted}


def _try_to_make(what: str, make: Callable[[], _Part], failed: list[str]) -> _Part | None:
    try:
        return make()
    except Exception as error:  # a cell must not fail because its result cannot be drawn
        failed.append(f"There is no {what}: {' '.join(str(error).split()) or type(error).__name__}")
        return None


def _cells(trace: TraceRecord) -> TableCells:
    summary = summarise(trace, "module")
    more = len(summary) - _ROWS
    left_out = [f"{more:,} more rows: trace.table()."] if more > 0 else []
    shown = summary.head(_ROWS).drop(columns=_DETAILS, errors="ignore")
    return table_cells(shown, "module", "Time by module", (*left_out, *notes_on(trace)))


def _picture(graph: Graph) -> str:
    drawn = _UNSEEN.sub("", render_graph(graph, "svg").decode())
    return _TAG.sub(lambda tag: _DIGITS.sub("", tag[0]), drawn)


def _html(trace: TraceRecord, picture: str | None, cells: TableCells | None, failed: list[str]) -> str:
    parts = [f"<p>{html.escape(_line(trace))}</p>"]
    if picture:
        # As an image, picture and page cannot affect each other; white on dark pages too.
        size = _WIDTH.search(picture)
        points = float(size[1]) if size else 800.0
        width = f"width: 100%; min-width: {points * 0.65:.0f}px; max-width: {points:.0f}px"
        parts.append(
            '<div style="overflow: auto; max-height: 640px; background: #fff; border-radius: 6px">'
            f'<img alt="Flowchart" style="{width}" src="data:image/svg+xml;base64,{_base64(picture)}"></div>'
        )
    if cells:
        parts.append(_html_table(cells))
    lines = (*failed, *(cells.notes if cells else ()))
    parts += [f'<p style="opacity: .7; font-size: 90%; margin: 2px 0">{html.escape(line)}</p>' for line in lines]
    return f'<div class="talkerviz">{"".join(parts)}</div>'


def _line(trace: TraceRecord) -> str:
    return repr(trace).strip("<>")


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _html_table(cells: TableCells) -> str:
    aligned = ["right" if number else "left" for number in cells.numbers]

    def row(tag: str, texts: Collection[Any]) -> str:
        found = zip(texts, aligned, strict=True)
        return "".join(
            f'<{tag} style="text-align: {side}; white-space: nowrap; padding: 2px 8px">{html.escape(str(text))}</{tag}>'
            for text, side in found
        )

    rows = "".join(f"<tr>{row('td', texts)}</tr>" for texts in cells.cells.itertuples(index=False, name=None))
    head = row("th", list(cells.cells.columns))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div style="overflow-x: auto">{table}</div>'


def _markdown(trace: TraceRecord, chart: str | None, cells: TableCells | None, failed: list[str]) -> str:
    parts = [markdown(_line(trace))]
    if chart:
        parts.append(f"```mermaid\n{chart.strip()}\n```")
    if cells:
        parts.append(markdown_table(cells))
    return "\n\n".join([*parts, *map(markdown, failed)])
