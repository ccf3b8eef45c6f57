"""`Trace.render`: what `talkerviz render` does, from Python.

A trace knows nothing of what draws it; the package's root gives it this method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypedDict, overload

from talkerviz.graph.view import View
from talkerviz.render import formats
from talkerviz.render.formats import CHARTS, FORMATS, PICTURES, Given, Style, check_options
from talkerviz.render.tables import TableView
from talkerviz.trace.trace import Trace

if TYPE_CHECKING:
    from typing_extensions import Unpack

Text = Literal[
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
]
Picture = Literal["png", "pdf"]


class Options(TypedDict, total=False):
    """All options of `render` as a type; it says what they are."""

    style: Literal["nested", "flat", "source"]
    phase: str | None
    frame: int | None
    module: str | None
    depth: int | None
    open: str | Sequence[str]
    close: str | Sequence[str]
    edges: Literal["flow", "calls"] | None
    fold: bool
    max_nodes: int | None
    by: Literal["module", "class", "phase", "part", "layer", "request", "frame", "call"] | None
    across: Literal["phase", "part", "rank"] | None
    sort: Literal["self", "total", "calls"] | None
    top: int | None


@overload
def render(trace: Trace, format: Text, **options: Unpack[Options]) -> str: ...
@overload
def render(trace: Trace, format: Picture, **options: Unpack[Options]) -> bytes: ...
@overload
def render(trace: Trace, format: str, **options: Unpack[Options]) -> str | bytes: ...
def render(
    trace: Trace,
    format: str,
    *,
    style: str = "nested",
    phase: str | None = None,
    frame: int | None = None,
    module: str | None = None,
    depth: int | None = None,
    open: str | Sequence[str] = (),
    close: str | Sequence[str] = (),
    edges: str | None = None,
    fold: bool = True,
    max_nodes: int | None = None,
    by: str | None = None,
    across: str | None = None,
    sort: str | None = None,
    top: int | None = None,
) -> str | bytes:
    """Draw the trace, or write a table of it or another program's file.

    Args:
        trace: the whole trace, or what `select` left of it.
        format: a chart, `mermaid`, `dot`, `svg`, `png`, `pdf` or `model-explorer`; a table, `markdown`, `latex`,
            `html`, `csv` or `json`; or `perfetto`, `speedscope`, `flamegraph`, `tensorboard` or `timeline`.
        style: of a chart: `nested` folds what repeats; `flat` has a box a call; `source`, Mermaid only, is the document
            that this project grew from.
        phase: only this phase, as the next three in any format.
        frame: only this frame, from 0.
        module: only modules whose path fits this pattern, as in a shell, and what is in them.
        depth: only calls nested at most this deep, 0 for those at the top; of a nested chart, open no further.
        open: patterns of paths that a nested chart opens, however deep.
        close: patterns of paths that it does not open.
        edges: what its arrows are: `flow` for where tensors went, `calls` for call order; by default flow if recorded.
        fold: whether it draws once what repeats.
        max_nodes: no more boxes in it; what does not fit is folded. By default 59.
        by: what a table's row stands for: `module` by default, `class`, `phase`, `part`, `layer`, `frame` or `call`.
        across: what it sets side by side: `phase`, `part` or `rank`.
        sort: which row comes first: `self`, `total` or `calls`.
        top: only so many rows.

    Returns:
        The bytes of a PNG or PDF; of anything else its text.

    Raises:
        ValueError: an unknown format or value of an option, an option that the format does not have, no such phase,
            frame or module, or what cannot be made here, with what to install; the message says it in one line.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}: choose from {', '.join(FORMATS)}")
    styles = [known.value for known in Style]
    if style not in styles:
        raise ValueError(f"unknown style {style!r}: choose from {', '.join(styles)}")
    for option, number, least in (("depth", depth, 0), ("max_nodes", max_nodes, 1), ("top", top, 1)):
        if number is not None and number < least:
            raise ValueError(f"{option} must be at least {least}, not {number}")
    of_tables = {"by": by, "across": across, "sort": sort, "top": top}
    of_charts = {"open": open, "close": close, "edges": edges, "max_nodes": max_nodes, "fold": not fold}
    how = Style(style)
    check_options(format, how, Given(of_tables, of_charts, "style"))
    opened = how is Style.nested and format in CHARTS
    chosen = trace.select(phase, frame, None if opened else depth, module)
    view = View(depth, _patterns(open), _patterns(close), max_nodes, edges, fold)
    drawn = formats.render(chosen, format, how, view, TableView(by or "module", across, sort, top))
    return drawn if format in PICTURES else drawn.decode()


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
