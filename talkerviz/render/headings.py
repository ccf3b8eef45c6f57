"""Graphviz draws arrows over what a group says of itself; in SVG it is put on top of them."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_GROUP, _TEXT = f"{{{_SVG}}}g", f"{{{_SVG}}}text"
_MARGIN = "4"


def headings_on_top(svg: bytes) -> bytes:
    """Graphviz's SVG with the texts of clusters last, each after a wider one in the cluster's colour.

    So an arrow passes behind them. The wider one is a text of its own, since not all programs paint strokes first.
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
            behind.attrib.update({"fill": colour, "stroke": colour, "stroke-width": _MARGIN, "aria-hidden": "true"})
            on_top.append(behind)
        on_top.extend(text for _, text in texts)
    drawn: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return drawn + b"\n"
