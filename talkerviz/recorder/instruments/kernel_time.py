"""Busy time: how long a call's kernels ran, from torch's profiler.

Each edge of a call leaves a note among the profiler's own events, so its clock alone says which call a kernel was
launched in. The profiler slows the host several times, so this is done in a run of its own; how long a kernel runs
does not depend on it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

_NOTE = "talkerviz edge"


class BusyMeter:
    """A gauge that gives `busy_ns`, for the thread that it is started on."""

    def __init__(self, thread: Callable[[], int]) -> None:
        self._thread = thread
        self._profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def start(self) -> None:
        """Begin to profile."""
        self._own_thread = self._thread()
        self._profile.start()

    def stamp(self, beginning: bool) -> None:
        """Leave a note."""
        if self._thread() == self._own_thread:
            with torch.profiler.record_function(_NOTE):
                pass

    def stop(self) -> None:
        """Read what the profiler saw."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        self._until = busy_until_edges(seen_by(self._profile))

    def measured(self, calls: pd.DataFrame, edges: pd.DataFrame) -> dict[str, Any]:
        """The run times of the kernels launched between each call's edges, added up."""
        there = (edges["thread"].to_numpy() == self._own_thread) & (edges["end"].to_numpy() < len(self._until))
        begin, end = (np.where(there, edges[name].to_numpy(), 0) for name in ("begin", "end"))
        until_edge = self._until if len(self._until) else np.zeros(1, dtype=np.int64)
        return {"busy_ns": pd.arrays.IntegerArray(until_edge[end] - until_edge[begin], ~there)}

    def facts(self) -> dict[str, Any]:
        """Nothing to note."""
        return {}


def busy_until_edges(seen: Mapping[str, Any]) -> np.ndarray:
    """Of a profile in Chrome's trace format: nanoseconds of the kernels launched before each edge's note.

    Raises:
        RuntimeError: no kernel can be told to have been launched by the thread that left the notes.
    """
    notes, thread = [], None
    launched: dict[int, tuple[float, Any]] = {}
    for event in seen["traceEvents"]:
        kind = event.get("cat")
        if kind == "user_annotation" and event.get("name") == _NOTE:
            notes.append(float(event["ts"]))
            thread = event["tid"]
        elif kind in LAUNCHES:
            launched[event["args"].get("correlation")] = float(event["ts"]), event["tid"]
    ran = [(event["args"].get("correlation"), time) for event, time in run_times(seen["traceEvents"])]
    known = [(*launched[number], time) for number, time in ran if number in launched]
    # What other threads launched, such as the backward pass's, is in no call of this one.
    found = [(at, time) for at, of_thread, time in known if of_thread == thread]
    if ran and notes and not found:
        raise RuntimeError(
            f"the profiler saw {len(ran):,} kernels, and none of them launched by the thread of the calls"
        )
    at = np.array([launch for launch, _ in found])
    order = np.argsort(at)
    until = np.concatenate([[0], np.cumsum(np.rint(np.array([time for _, time in found])[order] * 1e3))])
    places = np.searchsorted(at[order], np.sort(np.array(notes)))
    return until[places].astype(np.int64)


LAUNCHES = ("cuda_runtime", "cuda_driver")
"""The categories of what the host asks of a device; what that runs has the same `correlation`."""

RUN_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def run_times(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """What ran on a device, and how long each did, in microseconds.

    What begins before the one before it in its stream has ended, as kernels launched early do, waits until then and
    counts from there.
    """
    ended: dict[tuple[object, object], float] = {}
    ran = [event for event in events if event.get("cat") in RUN_ON_DEVICE]
    for event in sorted(ran, key=lambda event: float(event["ts"]) + float(event["dur"])):
        stream = event["args"].get("device"), event["args"].get("stream")
        begin, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        yield event, end - max(begin, ended.get(stream, begin))
        ended[stream] = end


def seen_by(profiler: profile) -> dict[str, Any]:
    """All that a profiler saw that has stopped, `traceEvents` among it; times are in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profiler.export_chrome_trace(str(path))
        seen: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return seen
