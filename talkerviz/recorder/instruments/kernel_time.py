"""Kernel time of calls (busy time), from torch's profiler.

Each entry and exit of a call leaves an annotation among the profiler's own events, so its clock alone tells in which
call a kernel was launched. The profiler slows the host several times, so this is done in a run of its own; the time
that a kernel runs does not depend on it.

While a CUDA graph is captured its kernels are launched and do not run, and a replay runs them with one launch. The
kernels of a replay are those of the capture in the order of their launches, so that those of each captured call are
known without anything added to the graph.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo
from talkerviz.recorder.method_patch import patch_method

_ANNOTATION = "talkerviz edge"
_CAPTURE, _CAPTURED, _REPLAY = "talkerviz capture ", "talkerviz captured", "talkerviz replay "  # and its number
_GRAPH_LAUNCH = "cudaGraphLaunch"
# Parts of the names of requests that give a graph a node which runs on the device.
_NODE_REQUESTS = ("LaunchKernel", "LaunchCooperativeKernel", "Memcpy", "Memset")
_ACTIVITIES = {
    "cuda": ProfilerActivity.CUDA,
    "xpu": ProfilerActivity.XPU,
    "mtia": ProfilerActivity.MTIA,
    "hpu": ProfilerActivity.HPU,
}


class KernelTime(Instrument):
    """Instrument that gives `busy_ns`, for calls of the thread it is attached on.

    A call that was captured into a CUDA graph has the mean time of its kernels over the graph's replays.

    Args:
        run: the recording.
        owner: the class of graphs.
    """

    def __init__(self, run: RunContext, owner: type = torch.cuda.CUDAGraph) -> None:
        self._thread = run.thread
        self._device_type = run.device_type
        self._owner = owner
        self._captures: list[Any] = []
        activity = _ACTIVITIES.get(run.device_type, ProfilerActivity.PrivateUse1)
        if activity not in torch.profiler.supported_activities():  # type: ignore[no-untyped-call]
            raise ValueError(f"'busy': torch's profiler sees no kernels of {run.device_type} here")
        self._profile = profile(activities=[ProfilerActivity.CPU, activity])

    def attach(self, undo: Undo) -> None:
        """Start the profiler."""
        self._own_thread = self._thread()
        self._profile.start()
        patch_method(self._owner, "capture_begin", self._wrap_begin, undo)
        patch_method(self._owner, "capture_end", self._wrap_end, undo)
        patch_method(self._owner, "replay", self._wrap_replay, undo)

    def _wrap_begin(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_begin(graph: Any, *args: Any, **kwargs: Any) -> Any:
            self._captures.append(graph)  # kept alive, so that no other graph gets its `id`
            self._annotate(f"{_CAPTURE}{len(self._captures) - 1}")
            return original(graph, *args, **kwargs)

        return capture_begin

    def _wrap_end(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_end(graph: Any) -> Any:
            result = original(graph)
            self._annotate(_CAPTURED)
            return result

        return capture_end

    def _wrap_replay(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def replay(graph: Any) -> Any:
            numbers = [number for number, captured in enumerate(self._captures) if captured is graph]
            if numbers:
                self._annotate(f"{_REPLAY}{numbers[-1]}")  # the graph's latest capture
            return original(graph)

        return replay

    def _annotate(self, name: str) -> None:
        if self._thread() == self._own_thread:
            with torch.profiler.record_function(name):
                pass

    def stamp(self, entry: bool) -> None:
        """Leave an annotation among the profiler's events."""
        self._annotate(_ANNOTATION)

    def stop(self) -> None:
        """Stop the profiler and read its events."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self._profile.stop()
        trace = chrome_trace_of(self._profile)
        if not any(event.get("cat") in RUN_ON_DEVICE for event in trace["traceEvents"]):
            raise RuntimeError(f"torch's profiler saw no kernel of {self._device_type}")
        self._until = busy_until_edges(trace)
        self._capture_of, self._captured_until = captured_until_edges(trace)

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return for each call the summed run times of the kernels launched in it."""
        there = (edges["thread"].to_numpy() == self._own_thread) & (edges["end"].to_numpy() < len(self._until))
        begin, end = (np.where(there, edges[name].to_numpy(), 0) for name in ("begin", "end"))
        if not len(self._until):
            return Readings({"busy_ns": pd.arrays.IntegerArray(begin, ~there)})
        busy = self._until[end] - self._until[begin]
        capture = self._capture_of[begin]
        captured = (capture >= 0) & (capture == self._capture_of[end])
        busy = np.where(captured, self._captured_until[end] - self._captured_until[begin], busy)
        # Of a capture whose replays could not be told apart nothing is known.
        known = there & ~(captured & (self._captured_until[end] < 0))
        return Readings({"busy_ns": pd.arrays.IntegerArray(busy, ~known)})


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


def captured_until_edges(chrome_trace: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each annotation the capture it is in, and the run time of the kernels captured before it.

    Args:
        chrome_trace: a profile in Chrome's trace format.

    Returns:
        Number of the capture, -1 outside of all; and nanoseconds, mean over the capture's replays. -1 where it has no
        replay, or one whose kernels are not as many as were captured.
    """
    events = chrome_trace["traceEvents"]
    marks = sorted(
        (
            (float(event["ts"]), event["name"], event["tid"])
            for event in events
            if event.get("cat") == "user_annotation" and str(event.get("name", "")).startswith("talkerviz ")
        ),
        key=lambda mark: mark[0],
    )
    launches = sorted((event for event in events if event.get("cat") in LAUNCHES), key=lambda event: float(event["ts"]))
    windows, replays = _captures_and_replays(marks)
    edges = np.array([at for at, name, _ in marks if name == _ANNOTATION])
    capture_of, until = np.full(len(edges), -1), np.full(len(edges), -1, dtype=np.int64)
    run_by: dict[Any, list[tuple[Mapping[str, Any], float]]] = {}
    for event, ran in run_times(events):
        run_by.setdefault(event["args"].get("correlation"), []).append((event, ran))
    for capture, (begin, end, thread) in windows.items():
        inside = (edges > begin) & (edges < end)
        capture_of[inside] = capture
        launched = [
            float(event["ts"])
            for event in launches
            if begin < float(event["ts"]) < end
            and event["tid"] == thread
            and any(request in event.get("name", "") for request in _NODE_REQUESTS)
        ]
        graph_launches = [
            (float(event["ts"]), event["args"].get("correlation"))
            for event in launches
            if event["tid"] == thread and event.get("name", "").startswith(_GRAPH_LAUNCH)
        ]
        # A replay's launch is the first one after its annotation.
        first = np.searchsorted([at for at, _ in graph_launches], replays.get(capture, []))
        times = [
            _in_order_of_launch(run_by.get(graph_launches[index][1], []))
            for index in first
            if index < len(graph_launches)
        ]
        if not times or any(len(of_replay) != len(launched) for of_replay in times):
            continue
        mean_us = np.array(times).reshape(len(times), -1).mean(axis=0)
        total = np.concatenate([[0], np.cumsum(np.rint(mean_us * 1e3))]).astype(np.int64)
        until[inside] = total[np.searchsorted(launched, edges[inside])]
    return capture_of, until


def _captures_and_replays(
    marks: Iterable[tuple[float, str, Any]],
) -> tuple[dict[int, tuple[float, float, Any]], dict[int, list[float]]]:
    """Return begin, end and thread of each capture by number, and the times of its replays."""
    windows: dict[int, tuple[float, float, Any]] = {}
    replays: dict[int, list[float]] = {}
    begun: tuple[int, float] | None = None
    for at, name, thread in marks:
        if name.startswith(_CAPTURE):
            begun = int(name.removeprefix(_CAPTURE)), at
        elif name == _CAPTURED and begun is not None:
            windows[begun[0]] = begun[1], at, thread
            begun = None
        elif name.startswith(_REPLAY):
            replays.setdefault(int(name.removeprefix(_REPLAY)), []).append(at)
    return windows, replays


def _in_order_of_launch(kernels: Sequence[tuple[Mapping[str, Any], float]]) -> list[float]:
    """Return the run times of a replay's kernels, in microseconds, in the order in which they were captured."""

    def place(kernel: tuple[Mapping[str, Any], float]) -> float:
        event = kernel[0]
        # Nodes are numbered as they are captured. Without their numbers, one stream runs them in that order.
        return float(event["args"]["graph node id"] if numbered else event["ts"])

    numbered = all(event["args"].get("graph node id") for event, _ in kernels)
    return [ran for _, ran in sorted(kernels, key=place)]


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
