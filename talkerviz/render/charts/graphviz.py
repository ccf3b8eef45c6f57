"""Graphviz layout of DOT by the system's `dot`, or by graphviz-pure, a dependency of this package."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path


class RenderError(ValueError):
    """Error of an output that cannot be made; the message has the reason and the remedy."""


class LayoutError(RenderError):
    """Error of a layout.

    Attributes:
        dot: DOT that was to be laid out.
    """

    def __init__(self, message: str, dot: str) -> None:
        super().__init__(message)
        self.dot = dot


def lay_out(dot: str, fmt: str) -> bytes:
    """Lay out DOT as `svg`, `png` or `pdf`.

    Raises:
        LayoutError: no layout program is installed, it lacks the format, or it failed.
    """
    system = shutil.which("dot")
    program = system or _graphviz_pure()
    if program is None:
        raise LayoutError(f"{fmt} needs Graphviz: install it (apt-get install graphviz), or write -f dot", dot)
    if not system and fmt == "pdf":
        raise LayoutError("pdf needs the system's Graphviz (apt-get install graphviz); svg and png do not", dot)
    done = subprocess.run([program, f"-T{fmt}"], input=dot.encode(), capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise LayoutError(f"{program} could not draw the {fmt}: {reason[-1] if reason else 'no output'}", dot)
    return done.stdout


def render_svg(dot: str) -> bytes:
    """Lay out DOT as SVG, with the headings of groups in front of arrows."""
    return headings_on_top(lay_out(dot, "svg"))


def render_png(dot: str) -> bytes:
    """Lay out DOT as PNG."""
    return lay_out(dot, "png")


def render_pdf(dot: str) -> bytes:
    """Lay out DOT as PDF."""
    return lay_out(dot, "pdf")


def _graphviz_pure() -> str | None:
    # First beside this Python, whose environment may not be active.
    beside = Path(sys.executable).parent
    return shutil.which("graphviz-pure", path=str(beside)) or shutil.which("graphviz-pure")


_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_GROUP, _TEXT = f"{{{_SVG}}}g", f"{{{_SVG}}}text"
_HALO_WIDTH = "4"  # points


def headings_on_top(svg: bytes) -> bytes:
    """Move headings of clusters to the end of Graphviz's SVG, each on a halo in the cluster's colour.

    Arrows then pass behind them. The halo is a text of its own, since not all programs paint strokes first.
    """
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)
    chart = root.find(_GROUP)
    clusters = [] if chart is None else [part for part in chart.iter(_GROUP) if part.get("class") == "cluster"]
    if chart is None or not clusters:
        return svg
    on_top = ET.SubElement(chart, _GROUP, {"class": "headings", "pointer-events": "none"})
    for cluster in clusters:
        colour = next((shape.get("fill", "none") for shape in cluster.iter() if "fill" in shape.attrib), "none")
        texts = [(holder, text) for holder in cluster.iter() for text in holder if text.tag == _TEXT]
        for holder, text in texts:
            holder.remove(text)
            behind = copy.deepcopy(text)
            behind.attrib.update({"fill": colour, "stroke": colour, "stroke-width": _HALO_WIDTH, "aria-hidden": "true"})
            on_top.append(behind)
        on_top.extend(text for _, text in texts)
    drawn: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return drawn + b"\n"
