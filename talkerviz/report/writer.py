"""Writer of profiling reports: a folder with a page, a text, tables, charts and files for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from talkerviz.atomic_file import named_errors
from talkerviz.flowchart.builder import Prepared, draw_prepared, prepare
from talkerviz.flowchart.model import View
from talkerviz.render.charts.graphviz import LayoutError
from talkerviz.render.registry import mermaid_for_github, render_graph
from talkerviz.render.viewers.perfetto import perfetto_pieces
from talkerviz.report.folder import ReportFolder
from talkerviz.report.headline_figures import Figures, figures_of
from talkerviz.report.html.chart_data import frames_data, typical_frame
from talkerviz.report.html.charts import Chart, Charts
from talkerviz.report.html.page import render_page
from talkerviz.report.html.timeline_slices import Slicer
from talkerviz.report.markdown import render_report
from talkerviz.trace import TraceRecord
from talkerviz.trace.flow import flow_between
from talkerviz.trace.labels import call_shapes
from talkerviz.trace.runs import as_one_run

_PAGE_SLICES = 16_000
"""Slices in the page itself; of a longer run it has a few frames, and files beside it have the others."""
_MAX_PERFETTO_CALLS = 250_000
"""Calls that Perfetto opens within seconds; of a longer run `trace.json` has the beginning."""
_BATCH_ROWS = 1 << 16  # rows of `calls.csv` in memory at a time


def write_report(trace: TraceRecord, folder: Path, on_file: Callable[[str], None] = lambda name: None) -> list[str]:
    """Write a report on a trace.

    Args:
        trace: trace to report on; of several runs the mean.
        folder: folder to write, created if it is missing; an earlier report in it is replaced.
        on_file: function called with the name of each file before it is written.

    Returns:
        Notes on the report, such as parts that could not be made, a line each.

    Raises:
        OSError: the folder or a file in it cannot be written.
        ValueError: the folder holds other files, or a file of the report in it was changed: see `ReportFolder`.
    """
    with named_errors(folder):
        return _write_all(trace, ReportFolder(folder), on_file)


def _write_all(trace: TraceRecord, folder: ReportFolder, on_file: Callable[[str], None]) -> list[str]:
    run = as_one_run(trace)
    notes: list[str] = []
    on_file("index.html")
    figures = figures_of(run)
    prepared = prepare(run, None)
    _write_page(run, prepared, figures, folder, notes)
    on_file("flowchart.svg")
    _write_picture(prepared, folder, notes)
    on_file("flowchart.mmd")
    chart = mermaid_for_github(prepared, View())
    folder.write_text("flowchart.mmd", chart)
    folder.write_text("report.md", render_report(run, figures, chart))
    on_file("calls.csv")
    _write_calls(trace, folder)
    if trace.calls["host_ns"].notna().any():
        on_file("trace.json")
        _write_timeline(trace, folder, notes)
    folder.write_text("facts.json", json.dumps(dict(trace.facts), indent=2) + "\n")
    folder.finish()
    return notes


def render_single_page(trace: TraceRecord) -> str:
    """Render the report's page as one file, without files beside it.

    The timeline of a long run has the calls of a few frames.

    Raises:
        LayoutError: Graphviz is missing or failed.
    """
    run = as_one_run(trace)
    slicer = Slicer(run)
    held = slicer.held(_PAGE_SLICES)
    typical = typical_frame(frames_data(run))
    if typical is not None and typical not in held:
        held.append(typical)
    charts = list(Charts(run).all())
    return render_page(run, figures_of(run), charts, slicer, [slicer.slices(frame) for frame in held], single_file=True)


def _write_page(
    trace: TraceRecord, prepared: Prepared, figures: Figures, folder: ReportFolder, notes: list[str]
) -> None:
    slicer = Slicer(trace)
    charts: list[Chart] = []
    try:
        charts = list(Charts(trace, prepared).all())
    except LayoutError as error:
        notes.append(f"the page's flowchart: {error}")
    held = slicer.held(_PAGE_SLICES)
    page = render_page(trace, figures, charts, slicer, [slicer.slices(frame) for frame in held])
    folder.write_text("index.html", page)
    for frame in slicer.frames:
        if frame["frame"] not in held:
            folder.write_text(f"frames/{frame['file']}", slicer.slices(frame["frame"]).script())


def _write_picture(prepared: Prepared, folder: ReportFolder, notes: list[str]) -> None:
    try:
        folder.write_bytes("flowchart.svg", render_graph(draw_prepared(prepared, View()).graph, "svg"))
    except LayoutError as error:
        folder.write_text("flowchart.dot", error.dot)
        notes.append(f"flowchart.svg: {error}; the DOT is in flowchart.dot")


def _write_calls(trace: TraceRecord, folder: ReportFolder) -> None:
    tables = _tables_of_calls(trace)
    first = next(tables)
    with folder.open("calls.csv") as file, pyarrow.csv.CSVWriter(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _tables_of_calls(trace: TraceRecord) -> Iterator[pa.Table]:
    """Yield every call with all of its numbers, its tensors as `1x20x1024 +2 → 1x20x2048`."""
    calls = trace.calls
    shapes = pd.Categorical(call_shapes(calls, more=True))
    for first in range(0, max(len(calls), 1), _BATCH_ROWS):
        columns = {}
        part = calls.iloc[first : first + _BATCH_ROWS]
        for name in calls.columns:
            if name in ("inputs", "outputs"):
                continue
            columns[name] = _plain(pa.array(part[name], from_pandas=True))
            if name == "error":
                columns["shapes"] = _plain(pa.array(shapes[first : first + _BATCH_ROWS], from_pandas=True))
        yield pa.table(columns)


def _plain(values: pa.Array) -> pa.Array:
    return values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values


def _write_timeline(trace: TraceRecord, folder: ReportFolder, notes: list[str]) -> None:
    calls = trace.calls
    if len(calls) > _MAX_PERFETTO_CALLS:
        # Cut before an outermost call, so that no call is incomplete.
        outermost = np.flatnonzero(~calls["parent"].isin(calls["call"]).to_numpy()[: _MAX_PERFETTO_CALLS + 1])
        kept = int(outermost[-1]) or _MAX_PERFETTO_CALLS
        numbers = calls["call"].to_numpy()
        flow = trace.flow and flow_between(trace.flow, int(numbers[0]), int(numbers[kept - 1]))
        notes.append(f"trace.json: the first {kept:,} calls; `talkerviz render -f perfetto` writes all")
        trace = replace(trace, calls=calls.iloc[:kept], flow=flow)
    with folder.open("trace.json") as file:
        for piece in perfetto_pieces(trace):
            file.write(piece.encode(errors="replace"))
