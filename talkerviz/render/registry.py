"""Every format by name."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from talkerviz.flowchart.model import Graph, View
from talkerviz.render.charts.graphviz import LAYOUTS, RenderError, lay_out
from talkerviz.render.charts.mermaid import over_github_limits
from talkerviz.render.tables.registry import TABLES, TableView, render_table_as
from talkerviz.render.viewers.common import TENSORBOARD_SUFFIX
from talkerviz.trace import TraceRecord
from talkerviz.trace.parquet import OTHER_FORMATS

if TYPE_CHECKING:
    from talkerviz.flowchart.builder import Prepared


def _on_demand(module: str) -> Callable[..., Any]:
    """Import a renderer's module at its first use: a command needs one of them, and its start is a part of its time."""

    def render_with(drawn: Any) -> Any:
        return getattr(import_module(f"talkerviz.render.{module}"), f"render_{module.rpartition('.')[2]}")(drawn)

    return render_with


TEXTS: Mapping[str, Callable[[Graph], str]] = {
    "mermaid": _on_demand("charts.mermaid"),
    "dot": _on_demand("charts.dot"),
    "model-explorer": _on_demand("charts.model_explorer"),
}
"""Text formats -> what draws a graph in them; `LAYOUTS` are made of DOT."""

_FLAT: Mapping[str, Callable[[TraceRecord], str]] = {
    "mermaid": _on_demand("charts.mermaid_flat"),
    "dot": _on_demand("charts.dot_flat"),
}

DATA: Mapping[str, Callable[[TraceRecord], bytes]] = {
    "perfetto": _on_demand("viewers.perfetto"),
    "speedscope": _on_demand("viewers.speedscope"),
    "flamegraph": _on_demand("viewers.collapsed_stacks"),
    "tensorboard": _on_demand("viewers.tensorboard"),
    "timeline": _on_demand("viewers.rank_timeline_svg"),
}
"""Formats that are neither charts nor tables -> what writes a trace in them."""

PICTURES = ("png", "pdf")
"""Formats that are no text."""

DRAWN = (*_FLAT, *LAYOUTS)
"""Charts that are pictures; the others are laid out by the program that they are for."""
CHARTS = (*DRAWN, *(fmt for fmt in TEXTS if fmt not in DRAWN))
FORMATS = (*CHARTS, *TABLES, *DATA)


_JSON = ("json", "perfetto", "speedscope", "tensorboard", "model-explorer")
SUFFIXES: Mapping[str, Sequence[str]] = {
    ".speedscope.json": ("speedscope",),
    TENSORBOARD_SUFFIX: ("tensorboard",),
    **{ending: (fmt,) for ending, fmt in OTHER_FORMATS.items()},
    ".json": _JSON,
    ".parquet": ("parquet",),
}
"""How a file's name ends -> the formats that it may have, ours and those of an answer to a query."""


class Style(str, enum.Enum):
    """How a chart is drawn."""

    nested = "nested"
    flat = "flat"
    source = "source"


@dataclass(frozen=True)
class Given:
    """Options by what the reader calls them.

    Attributes:
        of_tables: what only tables have; None where it was not asked for.
        of_charts: what only nested charts have; false where it was not asked for.
        style: what the style is called.
    """

    of_tables: Mapping[str, object]
    of_charts: Mapping[str, object]
    style: str


def check_options(fmt: str, style: Style, given: Given) -> None:
    """Say so if something was asked for that says nothing in such a format.

    Raises:
        ValueError: it was.
    """
    for option, asked in given.of_tables.items():
        if asked is not None and fmt not in TABLES:
            raise ValueError(f"{option}: only tables have it ({', '.join(TABLES)}), not {fmt}")
    for option, asked in {given.style: style is not Style.nested, **given.of_charts}.items():
        if asked and fmt not in CHARTS:
            raise ValueError(f"{option}: only charts have it ({', '.join(CHARTS)}), not {fmt}")
        if asked and style is not Style.nested and option != given.style:
            raise ValueError(f"{option}: only {given.style} nested has it, not {style.value}")


def render(
    trace: TraceRecord,
    fmt: str,
    style: Style = Style.nested,
    view: View = View(),  # noqa: B008
    table: TableView = TableView(),  # noqa: B008
) -> bytes:
    """Draw a trace, or what `Trace.select` left of it, or write a table of it.

    Args:
        trace: what is drawn.
        fmt: one of `FORMATS`.
        style: `nested` folds what repeats and groups by module; `flat` has a box a call; `source`, Mermaid only, is
            the document that this project grew from.
        view: how far the nested style is opened, and what its arrows are.
        table: what a table shows.

    Raises:
        RenderError: no such format, or not in this style, or it cannot be made here.
        ValueError: as `build_graph` for a chart, as `summarise` and `pivot` for a table.
    """
    if fmt not in FORMATS:
        raise RenderError(f"unknown format {fmt!r}: choose from {', '.join(FORMATS)}")
    if fmt in DATA:
        return DATA[fmt](trace)
    if fmt in TABLES:
        return render_table_as(trace, fmt, table)
    if style is Style.source:
        if fmt != "mermaid":
            raise RenderError(f"style source is Mermaid only, not {fmt}")
        return str(_on_demand("charts.legacy_mermaid")(trace)).encode()
    if fmt not in DRAWN:
        if style is Style.flat:
            raise RenderError(f"style flat is for {', '.join(DRAWN)}, not {fmt}")
        return render_graph(_graph(trace, replace(view, max_nodes=view.max_nodes or sys.maxsize)), fmt)
    if style is Style.flat:
        text = _FLAT["dot" if fmt in LAYOUTS else fmt](trace)
        return lay_out(text, fmt) if fmt in LAYOUTS else text.encode()
    if fmt == "mermaid" and view.max_nodes is None:
        from talkerviz.flowchart.builder import prepare

        return mermaid_for_github(prepare(trace, view.edges), view).encode()
    return render_graph(_graph(trace, view), fmt)


def render_graph(graph: Graph, fmt: str) -> bytes:
    """Draw a graph in one of `FORMATS`.

    Raises:
        RenderError: it cannot be made here.
    """
    if fmt not in LAYOUTS:
        return TEXTS[fmt](graph).encode()
    drawn = lay_out(TEXTS["dot"](graph), fmt)
    if fmt != "svg":
        return drawn
    from talkerviz.render.charts.graphviz import headings_on_top

    return headings_on_top(drawn)


def _graph(trace: TraceRecord, view: View) -> Graph:
    from talkerviz.flowchart.builder import build_graph

    return build_graph(trace, view)


def mermaid_for_github(prepared: Prepared, view: View) -> str:
    """A nested Mermaid chart, folded further than usual where GitHub would not draw it else."""
    from talkerviz.flowchart.builder import draw_prepared

    while True:
        graph = draw_prepared(prepared, view).graph
        text = TEXTS["mermaid"](graph)
        fewer = len(graph.boxes) * 3 // 4
        if over_github_limits(text) is None or fewer < 1 or view.open:
            return text
        view = replace(view, max_nodes=fewer)
