"""A profiling report: a folder with a page, a text, tables, diagrams, and what other programs open."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from talkerviz.disk import writing
from talkerviz.graph.build import Prepared, draw_prepared, prepare
from talkerviz.graph.view import View
from talkerviz.render.figures import Figures, figures_of
from talkerviz.render.formats import mermaid_for_github, render_graph
from talkerviz.render.html.charts import Chart, Charts
from talkerviz.render.html.page import render_page
from talkerviz.render.html.slices import Slicer
from talkerviz.render.layout import LayoutError
from talkerviz.render.perfetto import perfetto_pieces
from talkerviz.render.report_markdown import render_report
from talkerviz.trace import Trace
from talkerviz.trace.flow import flow_between
from talkerviz.trace.runs import as_one_run
from talkerviz.trace.shapes import shapes_of_calls

_NOT_ALWAYS = ("flowchart.svg", "flowchart.dot", "trace.json")
_HELD_SLICES = 16_000
"""What the page itself holds; of a longer run it holds a few frames, and the others are in files beside it."""
_MOST_SHOWN = 250_000
"""Calls that Perfetto still opens in no time; of a longer run it gets the beginning."""
_ROWS_EACH = 1 << 16  # of `calls.csv`: what is in memory of it at a time


def write_report(trace: Trace, folder: Path, on_file: Callable[[str], None] = lambda name: None) -> list[str]:
    """Write a report on a trace.

    Args:
        trace: the whole trace, or what `Trace.select` left of it. Of several runs the mean is told.
        folder: where to; made if it is not there. Files of the same names are written over.
        on_file: called with the name of each file that is about to be written.

    Returns:
        What to know of it, such as what could not be made, a line each.
    """
    with writing(folder):
        return _write_all(trace, folder, on_file)


def _write_all(trace: Trace, folder: Path, on_file: Callable[[str], None]) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    one = as_one_run(trace)
    notes: list[str] = []
    for stale in (*(folder / "frames").glob("frame-*.js"), *(folder / name for name in _NOT_ALWAYS)):
        stale.unlink(missing_ok=True)  # of a report that was here before
    on_file("index.html")
    figures = figures_of(one)
    prepared = prepare(one, None)
    _write_page(one, prepared, figures, folder, notes)
    on_file("flowchart.svg")
    _write_picture(prepared, folder / "flowchart.svg", notes)
    on_file("flowchart.mmd")
    chart = mermaid_for_github(prepared, View())
    _write_text(folder / "flowchart.mmd", chart)
    _write_text(folder / "report.md", render_report(one, figures, chart))
    on_file("calls.csv")
    _write_calls(trace, folder / "calls.csv")
    if trace.calls["host_ns"].notna().any():
        on_file("trace.json")
        _write_timeline(trace, folder / "trace.json", notes)
    _write_text(folder / "facts.json", json.dumps(dict(trace.facts), indent=2) + "\n")
    return notes


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")


def _write_page(trace: Trace, prepared: Prepared, figures: Figures, folder: Path, notes: list[str]) -> None:
    slicer = Slicer(trace)
    charts: list[Chart] = []
    try:
        charts = list(Charts(trace, prepared).all())
    except LayoutError as error:
        notes.append(f"the page's flowchart: {error}")
    held = slicer.held(_HELD_SLICES)
    page = render_page(trace, figures, charts, slicer, [slicer.slices(frame) for frame in held])
    _write_text(folder / "index.html", page)
    for frame in slicer.frames:
        if frame["frame"] not in held:
            (folder / "frames").mkdir(exist_ok=True)
            _write_text(folder / "frames" / frame["file"], slicer.slices(frame["frame"]).script())


def _write_picture(prepared: Prepared, path: Path, notes: list[str]) -> None:
    try:
        path.write_bytes(render_graph(draw_prepared(prepared, View()).graph, "svg"))
    except LayoutError as error:
        path.with_suffix(".dot").write_text(error.dot, encoding="utf-8", errors="replace")
        notes.append(f"{path.name}: {error}; the DOT is in {path.with_suffix('.dot').name}")


def _write_calls(trace: Trace, path: Path) -> None:
    """Every call and all of its numbers, its tensors as `1x20x1024 +2 → 1x20x2048`."""
    calls = trace.calls
    shapes = pd.Categorical(shapes_of_calls(calls, more=True))
    writer = None
    for first in range(0, max(len(calls), 1), _ROWS_EACH):
        columns = {}
        part = calls.iloc[first : first + _ROWS_EACH]
        for name in calls.columns:
            if name in ("inputs", "outputs"):
                continue
            columns[name] = _plain(pa.array(part[name], from_pandas=True))
            if name == "error":
                columns["shapes"] = _plain(pa.array(shapes[first : first + _ROWS_EACH], from_pandas=True))
        table = pa.table(columns)
        writer = writer or pyarrow.csv.CSVWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _plain(values: pa.Array) -> pa.Array:
    return values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values


def _write_timeline(trace: Trace, path: Path, notes: list[str]) -> None:
    calls = trace.calls
    if len(calls) > _MOST_SHOWN:
        # Up to where a call begins that is in no other, so that none is cut.
        outermost = np.flatnonzero(~calls["parent"].isin(calls["call"]).to_numpy()[: _MOST_SHOWN + 1])
        kept = int(outermost[-1]) or _MOST_SHOWN
        numbers = calls["call"].to_numpy()
        flow = trace.flow and flow_between(trace.flow, int(numbers[0]), int(numbers[kept - 1]))
        notes.append(f"{path.name}: the first {kept:,} calls; `talkerviz render -f perfetto` writes all")
        trace = replace(trace, calls=calls.iloc[:kept], flow=flow)
    with path.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.writelines(perfetto_pieces(trace))
