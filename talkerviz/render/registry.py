"""Output formats: one entry each. Lists, file name endings and checks are derived from the entries.

To add a format, write its renderer in a file and add an entry to `_ENTRIES`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from talkerviz.render.charts.graphviz import RenderError, lay_out
from talkerviz.render.options import OPTIONS, Naming, RenderOptions, given_options, option_name
from talkerviz.render.viewers.common import TENSORBOARD_SUFFIX
from talkerviz.trace import TraceRecord

if TYPE_CHECKING:
    from talkerviz.flowchart.builder import Prepared
    from talkerviz.flowchart.model import Graph, View

TextFormat = Literal[
    "mermaid",
    "dot",
    "svg",
    "model-explorer",
    "markdown",
    "latex",
    "html",
    "csv",
    "json",
    "perfetto",
    "speedscope",
    "flamegraph",
    "tensorboard",
    "timeline",
    "page",
]
"""Formats that `Trace.render` returns as str, for type checkers; a test compares them with the entries."""
BinaryFormat = Literal["png", "pdf"]
"""Formats that it returns as bytes."""


@dataclass(frozen=True)
class Format:
    """An output format.

    Attributes:
        name: name for `-f` and `Trace.render`.
        kind: `chart` draws a folded graph; `table` writes a summary; `data` writes the trace itself.
        loader: renderer as `module:function`, imported at first use, since a command needs one of them and its start is
            part of its time. A chart's takes a `Graph`, or DOT if it is `laid_out`; a table's takes `TableCells`, or
            the DataFrame if it is `unrounded`; that of data takes a `TraceRecord`. It returns str or bytes.
        suffixes: file name endings that select this format.
        shared_suffixes: file name endings that the format shares with others, and that select none of them.
        flat: renderer of the chart's style `flat`, as `module:function`; takes a `TraceRecord`.
        laid_out: True for a chart that Graphviz makes of DOT.
        unrounded: True for a table with all columns in base units.
        binary: True for bytes that are not text.
    """

    name: str
    kind: Literal["chart", "table", "data"]
    loader: str
    suffixes: tuple[str, ...] = ()
    shared_suffixes: tuple[str, ...] = ()
    flat: str | None = None
    laid_out: bool = False
    unrounded: bool = False
    binary: bool = False

    @cached_property
    def renderer(self) -> Callable[..., str | bytes]:
        """The function that `loader` names."""
        return _load(self.loader)


def _load(loader: str) -> Callable[..., Any]:
    module, _, function = loader.partition(":")
    renderer: Callable[..., Any] = getattr(import_module(module), function)
    return renderer


_CHARTS, _TABLES, _VIEWERS = (f"talkerviz.render.{package}" for package in ("charts", "tables.writers", "viewers"))
_JSON = (".json",)
_ENTRIES = (
    Format(
        "mermaid",
        "chart",
        f"{_CHARTS}.mermaid:render_mermaid",
        (".mmd",),
        flat=f"{_CHARTS}.mermaid_flat:render_mermaid_flat",
    ),
    Format("dot", "chart", f"{_CHARTS}.dot:render_dot", (".dot",), flat=f"{_CHARTS}.dot_flat:render_dot_flat"),
    Format("svg", "chart", f"{_CHARTS}.graphviz:render_svg", (".svg",), laid_out=True),
    Format("png", "chart", f"{_CHARTS}.graphviz:render_png", (".png",), laid_out=True, binary=True),
    Format("pdf", "chart", f"{_CHARTS}.graphviz:render_pdf", (".pdf",), laid_out=True, binary=True),
    Format("model-explorer", "chart", f"{_CHARTS}.model_explorer:render_model_explorer", (), _JSON),
    Format("markdown", "table", f"{_TABLES}:markdown_table", (".md",)),
    Format("latex", "table", f"{_TABLES}:latex_table", (".tex",)),
    Format("html", "table", f"{_TABLES}:html_table", (), (".html",)),
    Format("csv", "table", f"{_TABLES}:csv_table", (".csv",), unrounded=True),
    Format("json", "table", f"{_TABLES}:json_table", (), _JSON, unrounded=True),
    Format("perfetto", "data", f"{_VIEWERS}.perfetto:render_perfetto", (), _JSON),
    Format("speedscope", "data", f"{_VIEWERS}.speedscope:render_speedscope", (".speedscope.json",), _JSON),
    Format("flamegraph", "data", f"{_VIEWERS}.collapsed_stacks:render_collapsed_stacks"),
    Format("tensorboard", "data", f"{_VIEWERS}.tensorboard:render_tensorboard", (TENSORBOARD_SUFFIX,), _JSON),
    Format("timeline", "data", f"{_VIEWERS}.rank_timeline_svg:render_rank_timeline_svg"),
    # The report is built on this package, which must not import it: its page is known here by name alone.
    Format("page", "data", "talkerviz.report.writer:render_single_page", (".html",)),
)

REGISTRY: Mapping[str, Format] = {entry.name: entry for entry in _ENTRIES}
"""Formats by name."""
FORMATS = tuple(REGISTRY)
CHARTS = tuple(entry.name for entry in _ENTRIES if entry.kind == "chart")
TABLES = tuple(entry.name for entry in _ENTRIES if entry.kind == "table")
BINARY = tuple(entry.name for entry in _ENTRIES if entry.binary)
DRAWN = tuple(entry.name for entry in _ENTRIES if entry.flat or entry.laid_out)
"""Charts that are pictures; other charts are laid out by the program that opens them."""


def formats_of_name(name: str, formats: tuple[str, ...] = FORMATS) -> list[str]:
    """List the formats that a file's name may mean: the one whose ending it has, or those that share its ending.

    Args:
        name: name or path of the file.
        formats: formats to choose from, also others than those of `FORMATS`, whose ending is their name.
    """
    known = [REGISTRY.get(fmt) or Format(fmt, "data", "", (f".{fmt}",)) for fmt in formats]
    lower = name.lower()
    selected = [(suffix, entry.name) for entry in known for suffix in entry.suffixes if lower.endswith(suffix)]
    if selected:
        return [max(selected, key=lambda pair: len(pair[0]))[1]]
    return [entry.name for entry in known if lower.endswith(entry.shared_suffixes or "\0")]


def check_options(fmt: str, options: RenderOptions, naming: Naming = option_name) -> None:
    """Reject options that do not apply to this format.

    Raises:
        ValueError: unknown format, or an option that is given and does not apply.
    """
    if fmt not in REGISTRY:
        raise RenderError(f"unknown format {fmt!r}: choose from {', '.join(FORMATS)}")
    style = options.style
    for option in given_options(options):
        name, scope = naming(option), option.applies_to
        if scope == "table" and fmt not in TABLES:
            raise RenderError(f"{name}: only tables have it ({', '.join(TABLES)}), not {fmt}")
        if scope in ("chart", "nested") and fmt not in CHARTS:
            raise RenderError(f"{name}: only charts have it ({', '.join(CHARTS)}), not {fmt}")
        if scope == "nested" and style != "nested":
            raise RenderError(f"{name}: only {naming(OPTIONS['style'])} nested has it, not {style}")
    if style == "source" and fmt != "mermaid":
        raise RenderError(f"style source is Mermaid only, not {fmt}")
    if style == "flat" and fmt not in DRAWN:
        raise RenderError(f"style flat is for {', '.join(DRAWN)}, not {fmt}")


def render(trace: TraceRecord, fmt: str, options: RenderOptions = RenderOptions()) -> bytes:  # noqa: B008
    """Render a trace in one of `FORMATS`.

    Args:
        trace: trace to render.
        fmt: name of the format.
        options: calls to take, and how to draw or list them.

    Raises:
        RenderError: unknown format, an option that does not apply to it, or a program that it needs is missing.
        ValueError: no such phase, frame, module or rank; or as `build_graph` for a chart, and as `summarise` and
            `pivot` for a table.
    """
    check_options(fmt, options)
    entry = REGISTRY[fmt]
    # A nested chart folds what is deeper than `depth`; elsewhere those calls are left out.
    folded = entry.kind == "chart" and options.style == "nested"
    selected = select(trace, options if not folded else replace(options, depth=None))
    if entry.kind == "data":
        return _encoded(entry.renderer(selected))
    if entry.kind == "table":
        from talkerviz.render.tables.summary import render_summary

        return _encoded(render_summary(selected, entry.renderer, entry.unrounded, options))
    if options.style == "source":
        return _encoded(_load(f"{_CHARTS}.legacy_mermaid:render_legacy_mermaid")(selected))
    if options.style == "flat":
        text: str = _load(str(REGISTRY["dot" if entry.laid_out else fmt].flat))(selected)
        return lay_out(text, fmt) if entry.laid_out else text.encode()
    view = options.view
    if fmt == "mermaid" and view.max_nodes is None:
        from talkerviz.flowchart.builder import prepare

        return mermaid_for_github(prepare(selected, view.edges), view).encode()
    from talkerviz.flowchart.builder import build_graph

    if fmt not in DRAWN and view.max_nodes is None:
        view = replace(view, max_nodes=sys.maxsize)  # the program that opens it folds by itself
    return render_graph(build_graph(selected, view), fmt)


def select(trace: TraceRecord, options: RenderOptions) -> TraceRecord:
    """Return the trace with the calls that the options select.

    Raises:
        ValueError: no such phase, frame, module or rank.
    """
    return trace.select(options.phase, options.frame, options.depth, options.module, rank=options.rank)


def render_graph(graph: Graph, fmt: str) -> bytes:
    """Draw a graph in one of `CHARTS`.

    Raises:
        RenderError: a program that the format needs is missing, or failed.
    """
    entry = REGISTRY[fmt]
    return _encoded(entry.renderer(REGISTRY["dot"].renderer(graph) if entry.laid_out else graph))


def mermaid_for_github(prepared: Prepared, view: View) -> str:
    """Draw a nested Mermaid chart, with fewer boxes if GitHub would not draw it otherwise."""
    from talkerviz.flowchart.builder import draw_prepared
    from talkerviz.render.charts.mermaid import over_github_limits

    while True:
        graph = draw_prepared(prepared, view).graph
        text = str(REGISTRY["mermaid"].renderer(graph))
        fewer = len(graph.boxes) * 3 // 4
        if over_github_limits(text) is None or fewer < 1 or view.open:
            return text
        view = replace(view, max_nodes=fewer)


def _encoded(rendered: str | bytes) -> bytes:
    return rendered.encode() if isinstance(rendered, str) else rendered
