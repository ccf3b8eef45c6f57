"""Every format by name."""

from __future__ import annotations

import enum
from collections.abc import Callable

from talkerviz.render.dot import render_dot
from talkerviz.render.layout import RenderError, lay_out
from talkerviz.render.mermaid import render_mermaid
from talkerviz.render.source import render_source
from talkerviz.trace import Trace


class Style(str, enum.Enum):
    """How a Mermaid chart is drawn."""

    flat = "flat"
    source = "source"


FORMATS: dict[str, Callable[[Trace], bytes]] = {
    "mermaid": lambda trace: render_mermaid(trace).encode(),
    "dot": lambda trace: render_dot(trace).encode(),
    "svg": lambda trace: lay_out(render_dot(trace), "svg"),
    "png": lambda trace: lay_out(render_dot(trace), "png"),
    "pdf": lambda trace: lay_out(render_dot(trace), "pdf"),
}
"""Format name -> what draws a trace in the flat style."""


def render(trace: Trace, fmt: str, style: Style = Style.flat) -> bytes:
    """Draw a trace.

    Raises:
        RenderError: no such format, or not in this style, or it cannot be made here.
    """
    if fmt not in FORMATS:
        raise RenderError(f"unknown format {fmt!r}: choose from {', '.join(FORMATS)}")
    if style is Style.source:
        if fmt != "mermaid":
            raise RenderError(f"--style source is Mermaid only, not {fmt}")
        return render_source(trace).encode()
    return FORMATS[fmt](trace)
