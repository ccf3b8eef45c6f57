"""Data of the page as JSON: names, tables, frames, stacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.flowchart.builder import title_parts
from talkerviz.render.charts.palette import HEAT_FILLS, share_legend
from talkerviz.render.column_formats import is_number, quantity, shown_columns
from talkerviz.render.text import amount_text, factor_text, share_text, size_text, time_text
from talkerviz.report.html.charts import Chart
from talkerviz.report.html.timeline_slices import Slicer
from talkerviz.trace import TraceRecord

# Number formats of the page, by the function that formats alike in Python.
_KINDS: dict[Callable[[Any], str], str] = {
    time_text: "time",
    amount_text: "amount",
    size_text: "size",
    share_text: "share",
    factor_text: "factor",
}
_LAYER = re.compile(r"^(.*)\.(\d+)$")


def shared_data(trace: TraceRecord, charts: Sequence[Chart], slicer: Slicer) -> dict[str, Any]:
    """Return the data that the page and the notebook widget share."""
    title = title_parts(trace)
    date = str(trace.facts.get("date", ""))
    return {
        "title": title.pop("model"),
        "subtitle": " · ".join(part for part in (*title.values(), date) if part),
        "timed": bool(len(trace.calls) and trace.calls["host_ns"].notna().all()),
        "flow": trace.flow is not None,
        "heat": heat_data(),
        "edges": edge_kinds(charts),
        "names": vars(slicer.names),
        "frames": slicer.frames,
    }


def table_data(summary: pd.DataFrame, by: str) -> dict[str, Any]:
    """Convert a summary to `columns` with `name`, `label`, `kind` and `values`, and its number of `rows`."""
    columns = []
    for name in shown_columns(summary, by):
        what = quantity(name)
        values = [None if pd.isna(value) else value for value in summary[name].astype(object)]
        if what is None:
            kind = "whole" if is_number(name) else "text"
        elif pd.api.types.is_integer_dtype(summary[name]):
            kind, values = _KINDS.get(what.text, "count"), [value if value is None else int(value) for value in values]
        else:
            kind = _KINDS.get(what.text, "tenths" if what.decimals == 1 else "hundredths")
            values = [value if value is None else float(f"{value:.5g}") for value in values]
        columns.append({"name": name, "label": what.heading if what else name, "kind": kind, "values": values})
    return {"columns": columns, "rows": len(summary)}


def layers_data(trace: TraceRecord) -> list[dict[str, Any]]:
    """Compute the mean time of a call of each layer and of its parts, in nanoseconds, for each list of layers.

    Returns:
        Dicts with the `name` of the list, numbers of its `layers`, and `parts` with `name` and `values`; the last part
        is the layer's own time.
    """
    calls = trace.calls
    if not len(calls) or calls["host_ns"].isna().any():
        return []
    host = calls["host_ns"].to_numpy(dtype=np.int64)
    own = calls["host_self_ns"].to_numpy(dtype=np.int64)
    path = calls["path"].cat.codes.to_numpy()
    paths = [str(name) for name in calls["path"].cat.categories]
    number = np.bincount(path, minlength=len(paths))
    total = np.bincount(path, weights=host, minlength=len(paths))
    alone = np.bincount(path, weights=own, minlength=len(paths))
    lists: dict[str, dict[int, int]] = {}
    children: dict[str, dict[str, int]] = {}
    for code, name in enumerate(paths):
        if not number[code]:
            continue  # a selection of calls keeps the names of all modules
        above, _, part_name = name.rpartition(".")
        children.setdefault(above, {})[part_name] = code
        if found := _LAYER.match(name):
            lists.setdefault(found[1], {})[int(found[2])] = code
    data = []
    for prefix, layers in lists.items():
        places = sorted(layers)
        parts: dict[str, list[float]] = {}
        for column, place in enumerate(places):
            for part_name, code in children.get(f"{prefix}.{place}", {}).items():
                part = parts.setdefault(part_name, [0.0] * len(places))
                part[column] = round(total[code] / number[layers[place]])
        itself = [round(alone[layers[place]] / number[layers[place]]) for place in places]
        # Lists of simple modules, such as heads, have no parts; they are in the table.
        if len(places) > 1 and parts:
            shown = [{"name": name, "values": values} for name, values in parts.items()]
            data.append({"name": prefix, "layers": places, "parts": [*shown, {"name": "itself", "values": itself}]})
    return data


def frames_data(trace: TraceRecord) -> dict[str, Any]:
    """Compute the time in calls by frame and phase: `frames` in run order, and `phases`."""
    calls = trace.calls
    timed = calls[calls["frame"].notna() & calls["host_self_ns"].notna()]
    frames = np.unique(timed["frame"].to_numpy(dtype=np.int64))
    place = np.searchsorted(frames, timed["frame"].to_numpy(dtype=np.int64))
    phase = timed["phase"].cat.codes.to_numpy()
    own = timed["host_self_ns"].to_numpy(dtype=np.int64)
    series = []
    for code in dict.fromkeys(phase.tolist()):
        of_phase = phase == code
        sums = np.bincount(place[of_phase], weights=own[of_phase], minlength=len(frames))
        name = str(calls["phase"].cat.categories[code]) if code >= 0 else ""
        series.append({"name": name, "values": sums.astype(np.int64).tolist()})
    return {"frames": frames.tolist(), "phases": series}


def typical_frame(by_frame: Mapping[str, Any]) -> int | None:
    """Return the frame of median time, the first one left out."""
    times = [sum(times) for times in zip(*(phase["values"] for phase in by_frame["phases"]), strict=True)]
    ranked = sorted(zip(times, by_frame["frames"], strict=True))
    later = [frame for _, frame in ranked if frame > 0]
    return later[len(later) // 2] if later else None


def chart_data(chart: Chart) -> dict[str, Any]:
    """Return the data of a flowchart without its picture."""
    width, height = chart.size
    shown = {"name": chart.name, "label": chart.label, "level": chart.level, "boxes": chart.boxes}
    return {**shown, "width": width, "height": height}


def edge_kinds(charts: Sequence[Chart]) -> list[str]:
    """List the arrow styles that occur in some flowcharts."""
    return [kind for kind in ("flow", "carried", "state") if any(kind in chart.edges for chart in charts)]


def heat_data() -> list[tuple[str, str]]:
    """List the colours of boxes with their shares of the time, coolest first."""
    return list(zip(share_legend(), HEAT_FILLS, strict=True))
