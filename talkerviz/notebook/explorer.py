"""The widget: a trace's flowchart and time line, and what is chosen in them, here and there."""

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

# The parts of the report's page that the widget has too, in the order in which they need each other.
_PARTS = ("text", "state", "chart", "plot", "stacks")


@cache
def _module() -> str:
    """All that runs in the browser as one ECMAScript module, which needs no network."""
    own = partial(piece, package="talkerviz.notebook")
    style, body = piece("page.css") + own("explorer.css"), with_pieces(own("explorer.html"), controls())
    return "\n".join(
        [
            vendored("echarts.min.js"),
            # A page with a loader of its own would get it in another way.
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
    """A trace to look around in.

    A click on a box of the flowchart chooses its modules, a click on a bar of the time line a call, a drag over it a
    span of time. Each of these can be set from here as well.

    Attributes:
        trace: what is shown; of several runs their mean.
        selected: the paths of the chosen modules, all that a folded box stands for.
        phase: the phase that they were chosen in, or that was chosen alone; empty for all.
        call: the number of the chosen call, or None.
        frame: the frame whose time line is shown; None for what is outside of frames.
        span: the chosen span of time, its two ends in nanoseconds since the recording began, or None.
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
        self.on_msg(self._asked)

    def __repr__(self) -> str:
        return f"<Explorer of {self.trace!r}>"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and the trace's picture and table for where none runs, as on the page of a saved notebook."""
        widget, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**widget, **mimebundle(self.trace, {"text/html"})}, metadata

    @property
    def calls(self) -> pd.DataFrame:
        """The calls that are chosen: of the chosen modules and phase, those that run in the chosen span; or one call.

        Where nothing is chosen, all.
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
        """What the browser must know at the beginning, and the frame that it shows then."""
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

    def _asked(self, _: Any, content: dict[str, Any], buffers: Any) -> None:
        """Answer the browser, which asks for a frame's calls or the inside of a box when it is to show it."""
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
        known = [one["frame"] for one in self._slicer.frames]
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
