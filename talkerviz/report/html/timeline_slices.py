"""Calls of a frame for the page's timeline, loaded a frame at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.trace import TraceRecord
from talkerviz.trace.labels import call_shapes

MAX_SLICES = 4000
"""Maximum slices of a frame; the longest calls are kept."""
_CALLBACK = "talkervizFrame"


@dataclass(frozen=True)
class Slices:
    """Calls of a frame, or outside of frames.

    Attributes:
        frame: number of the frame; None for calls outside of frames.
        data: columns with a value per call, as JSON.
    """

    frame: int | None
    data: dict[str, Any]

    def script(self) -> str:
        """Return a script that passes the data to the page: pages opened from a disk cannot read other files."""
        return f"{_CALLBACK}({json.dumps(self.data, separators=(',', ':'))});\n"


def file_name(frame: int | None) -> str:
    """Return the name of a frame's file."""
    return "outside.js" if frame is None else f"frame-{frame:04d}.js"


@dataclass(frozen=True)
class Names:
    """Names that the numbers in slices refer to."""

    modules: list[str]
    classes: list[str]
    phases: list[str]
    shapes: list[str]


class Slicer:
    """Calls of a trace, by frame."""

    def __init__(self, trace: TraceRecord) -> None:
        calls = trace.calls
        shape, shapes = pd.factorize(np.array(call_shapes(calls, more=True), dtype=object))
        path = calls["path"].cat.codes.to_numpy()
        modules = [str(name) for name in calls["path"].cat.categories]
        kinds = np.empty(len(modules), dtype=object)
        kinds[path] = calls["class"].astype(object).to_numpy()
        self.names = Names(
            modules, [str(kind) for kind in kinds], [str(name) for name in calls["phase"].cat.categories], list(shapes)
        )
        self._columns = {
            "call": calls["call"].to_numpy(),
            "depth": calls["depth"].to_numpy(),
            "thread": calls["thread"].to_numpy(),
            "module": path,
            "phase": calls["phase"].cat.codes.to_numpy(),
            "step": _whole(calls["step"]),
            "shapes": shape,
            "start": _whole(calls["host_start_ns"]),
            "total": _whole(calls["host_ns"]),
            "self": _whole(calls["host_self_ns"]),
            "device_start": _whole(calls["device_start_ns"]),
            "device": _whole(calls["device_ns"]),
        }
        self._errors = calls["error"]
        frame = _whole(calls["frame"])
        order = np.argsort(frame, kind="stable")
        bounds = np.flatnonzero(np.diff(frame[order])) + 1
        groups = [rows for rows in np.split(order, bounds) if len(rows)]
        self._rows = {None if frame[rows[0]] < 0 else int(frame[rows[0]]): rows for rows in groups}

    @property
    def frames(self) -> list[dict[str, Any]]:
        """Frames in run order: `frame`, `file`, number of `calls`, and `time` in them."""
        own = self._columns["self"]
        return [
            {"frame": frame, "file": file_name(frame), "calls": len(rows), "time": int(own[rows].sum())}
            for frame, rows in self._rows.items()
        ]

    def held(self, most: int) -> list[int | None]:
        """Choose the frames for a page of at most `most` slices: all, or else the first ones and the longest one."""
        sizes = {frame: min(len(rows), MAX_SLICES) for frame, rows in self._rows.items()}
        if sum(sizes.values()) <= most:
            return list(sizes)
        longest = max(self.frames, key=lambda frame: int(frame["time"]))["frame"]
        return list(dict.fromkeys([*list(sizes)[:3], longest]))

    def slices(self, frame: int | None) -> Slices:
        """Return the calls of a frame."""
        return Slices(frame, self._data(frame, self._rows[frame]))

    def _data(self, frame: int | None, rows: np.ndarray) -> dict[str, Any]:
        kept = rows
        if len(rows) > MAX_SLICES:
            # A call takes at least as long as those inside it, so every kept call's caller is kept.
            longest = np.argsort(-self._columns["total"][rows], kind="stable")[:MAX_SLICES]
            kept = rows[np.sort(longest)]
        columns = {name: values[kept] for name, values in self._columns.items()}
        began = int(columns["start"].min())
        # Differences are shorter.
        columns["call"] = np.diff(columns["call"], prepend=0)
        if began >= 0:
            columns["start"] = np.diff(columns["start"], prepend=began)
        data: dict[str, Any] = {"frame": frame, "began": began, "left_out": len(rows) - len(kept)}
        for name, values in columns.items():
            # A column without values is left out.
            if (values != (0 if name == "thread" else -1)).any():
                data[name] = values.tolist()
        errors = self._errors.iloc[kept]
        data["errors"] = {int(place): str(errors.iloc[place]) for place in np.flatnonzero(errors.notna())}
        return data


def _whole(column: pd.Series) -> np.ndarray:
    found: np.ndarray = column.to_numpy(dtype=np.int64, na_value=-1)
    return found
