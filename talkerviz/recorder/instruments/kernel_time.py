"""Kernel time of calls (busy time), from torch's profiler.

Each entry and exit of a call leaves an annotation among the profiler's own events, so its clock alone tells in which
call a kernel was launched. The profiler slows the host several times, so this is done in a run of its own; the time
that a kernel runs does not depend on it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo

_ANNOTATION = "talkerviz edge"
_ACTIVITIES = {
    "cuda": ProfilerActivity.CUDA,
    "xpu": ProfilerActivity.XPU,
    "mtia": ProfilerActivity.MTIA,
    "hpu": ProfilerActivity.HPU,
}


class KernelTime(Instrument):
    """Instrument that gives `busy_ns`, for calls of the thread it is attached on."""

    def __init__(self, run: RunContext) -> None:
        self._thread = run.thread
        self._device_type = run.device_type
        activity = _ACTIVITIES.get(run.device_type, ProfilerActivity.PrivateUse1)
        if activity not in torch.profiler.supported_activities():  # type: ignore[no-untyped-call]
            raise ValueError(f"'busy': torch's profiler sees no kernels of {run.device_type} here")
        self._profile = profile(activities=[ProfilerActivity.CPU, activity])

    def attach(self, undo: Undo) -> None:
        """Start the profiler."""
        self._own_thread = self._thread()
        self._profile.start()

    def stamp(self, entry: bool) -> None:
        """Leave an annotation among the profiler's events."""
        if self._thread() == self._own_thread:
            with torch.profiler.record_function(_ANNOTATION):
                pass

    def stop(self) -> None:
        """Stop the profiler and read its events."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self._profile.stop()
        trace = chrome_trace_of(self._profile)
        if not any(event.get("cat") in RUN_ON_DEVICE for event in trace["traceEvents"]):
            raise RuntimeError(f"torch's profiler saw no kernel of {self._device_type}")
        self._until = busy_until_edges(trace)

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return for each call the summed run times of the kernels launched in it."""
        there = (edges["thread"].to_numpy() == self._own_thread) & (edges["end"].to_numpy() < len(self._until))
        begin, end = (np.where(there, edges[name].to_numpy(), 0) for name in ("begin", "end"))
        until_edge = self._until if len(self._until) else np.zeros(1, dtype=np.int64)
        return Readings({"busy_ns": pd.arrays.IntegerArray(until_edge[end] - until_edge[begin], ~there)})


def busy_until_edges(chrome_trace: Mapping[str, Any]) -> np.ndarray:
    """Return for each annotation the nanoseconds that the kernels launched before it ran.

    Args:
        chrome_trace: a profile in Chrome's trace format.

    Raises:
        RuntimeError: kernels ran, and none was launched by the thread of the annotations.
    """
    annotations, thread = [], None
    launches: dict[int, tuple[float, Any]] = {}  # launch time [µs] and thread, by correlation
    for event in chrome_trace["traceEvents"]:
        kind = event.get("cat")
        if kind == "user_annotation" and event.get("name") == _ANNOTATION:
            annotations.append(float(event["ts"]))
            thread = event["tid"]
        elif kind in LAUNCHES:
            launches[event["args"].get("correlation")] = float(event["ts"]), event["tid"]
    kernels = [(event["args"].get("correlation"), time) for event, time in run_times(chrome_trace["traceEvents"])]
    known = [(*launches[number], time) for number, time in kernels if number in launches]
    # Kernels that other threads launched, such as those of the backward pass, are in no call of this one.
    own = [(launched, time) for launched, launcher, time in known if launcher == thread]
    if kernels and annotations and not own:
        raise RuntimeError(
            f"the profiler saw {len(kernels):,} kernels, and none of them launched by the thread of the calls"
        )
    launched = np.array([launch for launch, _ in own])
    order = np.argsort(launched)
    until = np.concatenate([[0], np.cumsum(np.rint(np.array([time for _, time in own])[order] * 1e3))])
    before = np.searchsorted(launched[order], np.sort(np.array(annotations)))
    return until[before].astype(np.int64)


LAUNCHES = tuple(f"{name}_{layer}" for name in ("cuda", "xpu", "privateuse1") for layer in ("runtime", "driver"))
"""Categories of the host's requests to a device; the kernel or copy that one starts has the same `correlation`."""

RUN_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of events that run on a device."""


def run_times(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Yield each event that ran on a device with its run time in microseconds.

    An event that begins before its predecessor in the stream has ended, as kernels launched early do, waits until then
    and counts from there.
    """
    ended: dict[tuple[object, object], float] = {}
    device_events = [event for event in events if event.get("cat") in RUN_ON_DEVICE]
    for event in sorted(device_events, key=lambda event: float(event["ts"]) + float(event["dur"])):
        stream = event["args"].get("device"), event["args"].get("stream")
        begin, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        yield event, end - max(begin, ended.get(stream, begin))
        ended[stream] = end


def chrome_trace_of(profiler: profile) -> dict[str, Any]:
    """Return the events of a stopped profiler in Chrome's trace format; times are in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return trace
