"""Page of the report: data, styles and scripts in one file."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any

from talkerviz.analysis.frame_latency import FrameSummary, speech_ns
from talkerviz.render.escape import one_line
from talkerviz.render.notes import notes_on
from talkerviz.report.headline_figures import Figures
from talkerviz.report.html.assets import controls, piece, vendored, with_pieces
from talkerviz.report.html.chart_data import (
    chart_data,
    frames_data,
    layers_data,
    shared_data,
    table_data,
    typical_frame,
)
from talkerviz.report.html.charts import Chart
from talkerviz.report.html.flame import flame_of
from talkerviz.report.html.timeline_slices import Slicer, Slices
from talkerviz.trace import TraceRecord

# In order of their dependencies.
_SCRIPTS = ("host", "text", "state", "chart", "plot", "stacks", "plots", "tables", "panel", "main")
_VENDOR = ("echarts", "tabulator", "svg-pan-zoom")
_BESIDE = "The calls of some frames are in the folder frames beside this page."
_LEFT_OUT = "The timeline has {held:,} of {frames:,} frames: the first ones, a typical one and the longest."


def render_page(
    trace: TraceRecord,
    figures: Figures,
    charts: Sequence[Chart],
    slicer: Slicer,
    held: Sequence[Slices],
    single_file: bool = False,
) -> str:
    """Render the page.

    Args:
        trace: trace of one run.
        figures: headline figures and tables.
        charts: flowcharts; none if they could not be drawn.
        slicer: calls by frame.
        held: frames whose calls are in the page itself.
        single_file: leave other frames out of the timeline; by default they are loaded from files beside the page.
    """
    data = _data(trace, figures, charts, slicer, held)
    if single_file:
        kept = {slices.frame for slices in held}
        data["frames"] = [frame for frame in data["frames"] if frame["frame"] in kept]
        data["notes"] = [
            _LEFT_OUT.format(held=len(held), frames=len(slicer.frames)) if note == _BESIDE else note
            for note in data["notes"]
        ]
    pieces = {
        **controls(),
        "title": html.escape(one_line(f"{data['title']} – talkerviz")),
        "style": f"{vendored('tabulator.min.css')}\n{piece('page.css')}",
        "charts": "".join(
            f'<template id="chart-{number}"><svg>{chart.svg}</svg></template>\n' for number, chart in enumerate(charts)
        ),
        "data": _json(data),
        "vendor": "\n".join(_script(vendored(f"{name}.min.js")) for name in _VENDOR),
        "script": "\n".join(_script(piece(f"{name}.js")) for name in _SCRIPTS),
    }
    return with_pieces(piece("template.html"), pieces)


# Direction marks in JSON; the page shows their codes.
_DIRECTION_MARKS = re.compile(r"(?<!\\)((?:\\\\)*)\\u(061c|200[ef]|202[a-e]|206[6-9])")


def _json(value: Any) -> str:
    # A name could end the script element, or begin a comment that hides its end.
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return _DIRECTION_MARKS.sub(r"\1\\\\u\2", text)


def _script(text: str) -> str:
    return text.replace("</script", "<\\/script").strip()


def _data(
    trace: TraceRecord, figures: Figures, charts: Sequence[Chart], slicer: Slicer, held: Sequence[Slices]
) -> dict[str, Any]:
    by_frame = frames_data(trace)
    return {
        **shared_data(trace, charts, slicer),
        "numbers": [vars(number) for number in figures.numbers],
        "notes": notes_on(trace) + ([_BESIDE] if len(held) < len(slicer.frames) else []),
        "facts": [
            [name, value if isinstance(value, str) else json.dumps(value)] for name, value in trace.facts.items()
        ],
        "peaks": trace.facts.get("peaks"),
        "tables": {by: table_data(table, by) for by, table in figures.tables.items()},
        "charts": [chart_data(chart) for chart in charts],
        "slices": [slices.data for slices in held],
        "typical": typical_frame(by_frame),
        "flame": flame_of(trace),
        "byFrame": by_frame,
        "marks": _marks(trace, figures.frames),
        "layers": layers_data(trace),
    }


def _marks(trace: TraceRecord, summary: FrameSummary | None) -> list[dict[str, Any]]:
    marks = []
    if summary is not None and summary.p50_ns is not None:
        marks.append({"name": "latency p50", "value": round(summary.p50_ns)})
    frame_ns = speech_ns(trace)
    return [*marks, {"name": "real time", "value": frame_ns}] if frame_ns else marks
