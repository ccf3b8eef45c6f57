"""Widget with a trace's flowchart and timeline, and a selection shared with Python."""

from __future__ import annotations

import json
from functools import cache, partial
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets

from talkerviz.analysis.summary import summarise
from talkerviz.notebook.display import mimebundle
from talkerviz.render.charts.graphviz import LayoutError
from talkerviz.report.html.assets import controls, piece, vendored, with_pieces
from talkerviz.report.html.chart_data import chart_data, frames_data, shared_data, table_data, typical_frame
from talkerviz.report.html.charts import Chart, Charts
from talkerviz.report.html.timeline_slices import Slicer
from talkerviz.trace.runs import as_one_run
from talkerviz.trace.trace import TraceRecord

# Scripts shared with the report's page, in order of their dependencies.
_PARTS = ("text", "state", "chart", "plot", "stacks")


@cache
def _module() -> str:
    """Return the browser code as one ECMAScript module, which needs no network."""
    own = partial(piece, package="talkerviz.notebook")
    style, body = piece("page.css") + own("explorer.css"), with_pieces(own("explorer.html"), controls())
    return "\n".join(
        [
            vendored("echarts.min.js"),
            # Hides a page's own module loader, which the library would use.
            "(() => { const define = undefined, require = undefined;",
            vendored("svg-pan-zoom.min.js"),
            "})();",
            f"const STYLE = {json.dumps(style)}, BODY = {json.dumps(body)};",
            "function explorer(model, root, data) {",
            "'use strict';",
            *(piece(f"{name}.js") for name in _PARTS),
            own("explorer.js"),
            "}",
            own("mount.js"),
        ]
    )


class Explorer(anywidget.AnyWidget):
    """Widget to explore a trace.

    A click on a box of the flowchart selects its modules, a click on a bar of the timeline a call, and a drag over the
    timeline a span of time. Each attribute but `trace` can also be set from Python.

    Attributes:
        trace: trace shown; of several runs their mean.
        selected: paths of the selected modules, all those of a folded box.
        phase: phase of the selection; empty for all.
        call: number of the selected call, or None.
        frame: frame of the timeline; None for calls outside of frames.
        span: selected span of time, its two ends in nanoseconds since the recording began, or None.
    """

    _esm = _module()
    _data = traitlets.Dict().tag(sync=True)
    selected = traitlets.List(traitlets.Unicode()).tag(sync=True)
    phase = traitlets.Unicode().tag(sync=True)
    call = traitlets.Int(None, allow_none=True).tag(sync=True)
    frame = traitlets.Int(None, allow_none=True).tag(sync=True)
    span = traitlets.List(traitlets.Int(), None, allow_none=True, minlen=2, maxlen=2).tag(sync=True)

    def __init__(self, trace: TraceRecord) -> None:
        self.trace = trace = as_one_run(trace)
        self._paths = frozenset(map(str, trace.calls["path"].cat.categories))
        self._slicer = Slicer(trace)
        self._charts = Charts(trace)
        data, frame = self._first()
        super().__init__(_data=data, frame=frame)
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        return f"<Explorer of {self.trace!r}>"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the widget, with a picture and a table for viewers without widgets, such as saved notebooks."""
        widget, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**widget, **mimebundle(self.trace, {"text/html"})}, metadata

    @property
    def calls(self) -> pd.DataFrame:
        """Selected calls: the selected call, or those of the selected modules and phase that run in the selected span.

        Without a selection, all calls.
        """
        calls = self.trace.calls
        kept = np.ones(len(calls), dtype=bool)
        if self.call is not None:
            kept &= (calls["call"] == self.call).to_numpy()
        else:
            if self.selected:
                kept &= calls["path"].isin(self.selected).to_numpy()
            if self.phase:
                kept &= (calls["phase"] == self.phase).to_numpy(dtype=bool)
            if self.span is not None:
                begin, end = self.span
                starts = calls["host_start_ns"]
                inside = (starts < end) & (starts + calls["host_ns"] > begin)
                kept &= inside.to_numpy(dtype=bool, na_value=False)
        chosen: pd.DataFrame = calls[kept]
        return chosen

    def _first(self) -> tuple[dict[str, Any], int | None]:
        """Return the initial data for the browser, and the frame that it shows first."""
        trace, frames = self.trace, self._slicer.frames
        why, charts = "", list[Chart]()
        try:
            charts = list(self._charts.levels())
        except LayoutError as error:
            why = str(error)
        typical = typical_frame(frames_data(trace))
        frame = typical if typical is not None else frames[0]["frame"] if frames else None
        data = {
            **shared_data(trace, charts, self._slicer),
            "why": why,
            "tables": {by: table_data(summarise(trace, by), by) for by in ("class", "phase")},
            "charts": [_drawn(chart) for chart in charts],
            "slices": [self._slicer.slices(frame).data] if frames else [],
            "typical": frame,
        }
        return data, frame

    def _answer(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        """Answer a request of the browser for a frame's calls or for the inside of a box."""
        known = [frame["frame"] for frame in self._slicer.frames]
        if content.get("ask") == "frame" and content.get("frame") in known:
            self.send({"slice": self._slicer.slices(content["frame"]).data})
        elif content.get("ask") == "chart" and content.get("chart") in self._charts.insides:
            try:
                self.send({"chart": _drawn(self._charts.inside(content["chart"]))})
            except LayoutError as error:
                self.send({"why": str(error)})

    @traitlets.validate("selected")
    def _known_modules(self, proposal: Any) -> list[str]:
        for path in proposal["value"]:
            if path not in self._paths:
                raise traitlets.TraitError(f"selected: no module {path!r} was called; see trace.matching_paths")
        return list(proposal["value"])

    @traitlets.validate("phase")
    def _known_phase(self, proposal: Any) -> str:
        phase, phases = str(proposal["value"]), self.trace.phases
        if phase and phase not in phases:
            raise traitlets.TraitError(f"phase: no phase {phase!r} in this trace; choose from {', '.join(phases)}")
        return phase

    @traitlets.validate("call")
    def _known_call(self, proposal: Any) -> int | None:
        call: int | None = proposal["value"]
        if call is not None and not (self.trace.calls["call"] == call).any():
            raise traitlets.TraitError(f"call: no call {call} in this trace")
        return call

    @traitlets.validate("frame")
    def _known_frame(self, proposal: Any) -> int | None:
        frame: int | None = proposal["value"]
        known = [known_frame["frame"] for known_frame in self._slicer.frames]
        if known and frame not in known:
            raise traitlets.TraitError(f"frame: no frame {frame} in this trace")
        return frame

    @traitlets.observe("call")
    def _show_call(self, change: Any) -> None:
        if change["new"] is not None:
            row = self.trace.calls[self.trace.calls["call"] == change["new"]].iloc[0]
            frame = None if pd.isna(row["frame"]) else int(row["frame"])
            with self.hold_trait_notifications():
                self.selected, self.phase, self.frame = [str(row["path"])], "", frame


def _drawn(chart: Chart) -> dict[str, Any]:
    return {**chart_data(chart), "svg": chart.svg}
