"""Flowcharts of the page: SVG for embedding, and the calls of each box."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from talkerviz.flowchart.builder import Prepared
from talkerviz.flowchart.model import Graph, View, headings_in
from talkerviz.flowchart.subpages import FIRST, Page, Subpages
from talkerviz.render.charts.label_text import EdgeStyle, edge_style
from talkerviz.render.charts.palette import INK
from talkerviz.render.registry import render_graph
from talkerviz.trace import TraceRecord

_DEPTHS = (0, 1, 2)
_LABELS = {
    "depth-0": "phases",
    "depth-1": "one level deeper",
    "depth-2": "two levels deeper",
    FIRST: "as much as is legible",
}
_SVG = "{http://www.w3.org/2000/svg}"
_TITLE_OF_LINK = "{http://www.w3.org/1999/xlink}title"
# Elements that Graphviz draws with.
_SHAPES = ("ellipse", "path", "polygon", "polyline", "text")
_KEPT = (
    *("cx", "cy", "rx", "ry", "x", "y", "d", "points", "transform"),
    *("fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-weight", "text-anchor"),
)
# Attribute values that the page's style sheet implies.
_IMPLIED = {"stroke": ("transparent", "none"), "text-anchor": ("start",), "font-size": ("9.00",)}
_DECIMALS = re.compile(r"(\.\d)\d+")


@dataclass(frozen=True)
class Chart:
    """Flowchart of the page.

    Attributes:
        name: target of links from boxes.
        label: name in the list of charts.
        level: True for the whole run opened to some level; False for the inside of a box.
        svg: picture.
        size: width and height in CSS pixels, with a margin.
        edges: styles of its arrows.
        boxes: `kind`, `name`, `calls`, `phase`, `modules` by number, and `link`, by the id of a box or group.
    """

    name: str
    label: str
    level: bool
    svg: str
    size: tuple[float, float]
    edges: frozenset[EdgeStyle]
    boxes: Mapping[str, Mapping[str, Any]]


class Charts:
    """Charts of the whole run, opened to several levels, and of the inside of each closed box, drawn on demand.

    Args:
        trace: trace of one run.
        prepared: result of `prepare` for this trace, if it is known.
    """

    def __init__(self, trace: TraceRecord, prepared: Prepared | None = None) -> None:
        self._trace = trace
        self._views = {**{f"depth-{depth}": View(depth=depth) for depth in _DEPTHS}, FIRST: View()}
        self._pages = Subpages(trace, self._views, "", prepared)

    def levels(self) -> Iterator[Chart]:
        """Draw the charts of the whole run, the least opened one first; none without calls.

        Raises:
            LayoutError: Graphviz is missing or failed.
        """
        levels: list[list[tuple[str, int]]] = []
        for name in self._views if len(self._trace.calls) else ():
            page = self._pages.draw(name)
            shown = _shown(page.graph)
            # Once all is open, going deeper changes nothing.
            if shown not in levels:
                levels.append(shown)
                yield self._chart(page, _LABELS[name], True)

    @property
    def insides(self) -> list[str]:
        """Names of the insides that boxes of the charts drawn so far link to."""
        return self._pages.names[len(self._views) :]

    def inside(self, name: str) -> Chart:
        """Draw the inside of the box that links to a chart of this name.

        Raises:
            LayoutError: Graphviz is missing or failed.
        """
        return self._chart(self._pages.draw(name), name, False)

    def all(self) -> Iterator[Chart]:
        """Draw the levels, then all insides.

        Raises:
            LayoutError: Graphviz is missing or failed.
        """
        yield from self.levels()
        drawn = 0
        while drawn < len(self.insides):
            yield self.inside(self.insides[drawn])
            drawn += 1

    def _chart(self, page: Page, label: str, level: bool) -> Chart:
        calls = self._trace.calls
        number_of_row = calls["call"].to_numpy()
        svg, size = page_svg(render_graph(replace(page.graph, title=""), "svg"))
        path, phase = (calls[column].cat.codes.to_numpy() for column in ("path", "phase"))
        boxes = {}
        for box in headings_in(page.graph.members):
            of_box = np.searchsorted(number_of_row, page.calls.get(box.id, np.empty(0, dtype=int)))
            boxes[box.id] = {
                "kind": box.kind,
                "name": box.name,
                "path": box.path,
                "calls": box.calls,
                "phase": int(phase[of_box[0]]) if len(of_box) else -1,
                "modules": np.unique(path[of_box]).tolist() if box.kind == "module" else [],
                "link": box.link,
            }
        edges = frozenset(edge_style(edge) for edge in page.graph.edges)
        return Chart(page.name, label, level, svg, size, edges, boxes)


def _shown(graph: Graph) -> list[tuple[str, int]]:
    return [(box.path or box.name, box.calls) for box in headings_in(graph.members)]


def page_svg(drawn: bytes) -> tuple[str, tuple[float, float]]:
    """Reduce Graphviz's SVG for a page: ids as data attributes, no links and titles; return it with its size."""
    chart = ET.fromstring(drawn)
    view = ET.Element("g")
    for outer in chart.findall(f"{_SVG}g"):
        for part in outer.findall(f"{_SVG}g"):
            kind = part.get("class")
            if kind not in ("node", "edge", "cluster", "headings"):
                continue
            title = (part.findtext(f"{_SVG}title") or "").removeprefix("cluster_")
            source, _, target = title.partition("->")
            ids = {"data-from": source.split(":")[0], "data-to": target.split(":")[0]} if kind == "edge" else {}
            known = ids or ({"data-id": title} if title else {})
            found = ET.SubElement(view, "g", {"class": kind, **known})
            tooltip = next((link.get(_TITLE_OF_LINK, "") for link in part.iter(f"{_SVG}a")), "").strip()
            if tooltip:
                ET.SubElement(found, "title").text = tooltip
            for shape in part.iter():
                tag = shape.tag.removeprefix(_SVG)
                if tag in _SHAPES:
                    attributes = {name: shape.get(name, "") for name in _KEPT if name in shape.attrib}
                    kept = {name: value for name, value in attributes.items() if value not in _IMPLIED.get(name, ())}
                    if tag == "text" and kept.get("fill") == INK:
                        del kept["fill"]
                    rounded = {name: _DECIMALS.sub(r"\1", value) for name, value in kept.items()}
                    ET.SubElement(found, tag, rounded).text = shape.text
    width, height = (float(number) for number in chart.get("viewBox", "0 0 0 0").split()[2:])
    return ET.tostring(view, encoding="unicode"), (width, height)
