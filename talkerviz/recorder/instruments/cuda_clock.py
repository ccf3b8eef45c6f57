"""Device time: an event on the current stream at each edge of a call.

Nothing waits inside the run. Events that the device has passed are read when a batch is written away, the others when
the run is over, and all are used again. The times are put on the host's line by events whose host time is known, at
the start and at the end.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np
import pandas as pd
import torch

_PINGS = 10
# An event's distance is a float32 of milliseconds: exact to nanoseconds only over short distances.
_MOST_NS_FROM_ANCHOR = 100_000_000
_NO_TIME = -1


def _event(external: bool) -> Any:
    event: Any = torch.cuda.Event  # which is not typed
    # Not every torch knows external events; only captures need them.
    return event(enable_timing=True, external=True) if external else event(enable_timing=True)


@dataclass(frozen=True)
class Cuda:
    """The few things that are needed of a device's runtime; the tests bring their own."""

    event: Callable[[bool], Any] = _event
    device: Callable[[], int] = lambda: torch.cuda.current_device()
    capturing: Callable[[], bool] = lambda: torch.cuda.is_current_stream_capturing()
    synchronize: Callable[[int], None] = lambda device: torch.cuda.synchronize(device)
    select: Callable[[int], Any] = lambda device: torch.cuda.device(device)


class DeviceLine:
    """The time line of one device, nanoseconds on the host's clock."""

    def __init__(self, anchor: Any, host_ns: int) -> None:
        self._anchor, self._anchor_ns = anchor, host_ns
        self._first_ns = host_ns
        self._stretch, self._shift = 1.0, 0

    def time_of(self, event: Any) -> int:
        """When the device passed an event; `corrected` is still to be applied."""
        time = self._anchor_ns + round(self._anchor.elapsed_time(event) * 1e6)
        return int(time)

    def move_anchor(self, event: Any, time: int) -> bool:
        """Measure from this event from now on, if it is far enough from the last; it must not be used again then."""
        if time - self._anchor_ns < _MOST_NS_FROM_ANCHOR:
            return False
        self._anchor, self._anchor_ns = event, time
        return True

    def align(self, event: Any, host_ns: int, start_known: bool) -> None:
        """Correct the line by an event at its end whose host time is known."""
        seen = self.time_of(event)
        if start_known and seen > self._first_ns:
            self._stretch = (host_ns - self._first_ns) / (seen - self._first_ns)
        else:
            self._shift = host_ns - seen

    def corrected(self, times: np.ndarray) -> np.ndarray:
        """Times of this line after `align`."""
        moved = self._first_ns + (times - self._first_ns) * self._stretch + self._shift
        return np.asarray(np.rint(moved), dtype=np.int64)


@dataclass
class _Edges:
    times: array[int] = field(default_factory=lambda: array("q"))
    devices: array[int] = field(default_factory=lambda: array("q"))
    waiting: deque[tuple[int, Any]] = field(default_factory=deque)


class CudaClock:
    """A gauge that gives `device_start_ns`, `device_ns` and `device_self_ns`.

    Args:
        thread: gives the number of the calling thread.
        origin_ns: the host's time that counts as 0.
        devices: the devices that the model is on.
        cuda: the runtime.
    """

    def __init__(
        self, thread: Callable[[], int], origin_ns: int, devices: tuple[int, ...], cuda: Cuda | None = None
    ) -> None:
        self.cuda = cuda or Cuda()
        self._thread = thread
        self._origin_ns = origin_ns
        self._aligned = devices
        self._edges: dict[int, _Edges] = {}
        self._pool: dict[int, list[Any]] = {}
        self._lines: dict[int, DeviceLine] = {}
        self.captured: list[tuple[int, int, Any]] = []
        """Thread, edge and event of what the graph being captured will pass at each replay."""
        self.capture_fault: str | None = None

    def start(self) -> None:
        """Find what the host's time is on each device."""
        for device in self._aligned:
            self._lines[device], self._pool[device] = DeviceLine(*self._ping(device)), []

    def _ping(self, device: int) -> tuple[Any, int]:
        """An event, and the host's time when the device passed it: of some tries the one with the least doubt."""
        best: tuple[int, Any, int] | None = None
        with self.cuda.select(device):
            for _ in range(_PINGS):
                event = self.cuda.event(False)
                self.cuda.synchronize(device)
                before = perf_counter_ns()
                event.record()
                self.cuda.synchronize(device)
                after = perf_counter_ns()
                if best is None or after - before < best[0]:
                    best = after - before, event, (before + after) // 2
        assert best is not None
        return best[1], best[2]

    def stamp(self, beginning: bool) -> None:
        """Record an event on the current stream."""
        thread, device = self._thread(), self.cuda.device()
        edges = self._edges.get(thread)
        if edges is None:
            edges = self._edges[thread] = _Edges()
        if self.cuda.capturing():
            self._stamp_capture(thread, len(edges.times) + len(edges.waiting))
            edges.waiting.append((device, None))
            return
        if device not in self._lines:
            self.know(device)
        pool = self._pool[device]
        event = pool.pop() if pool else self.cuda.event(False)
        event.record()
        edges.waiting.append((device, event))

    def know(self, device: int) -> None:
        """Give a device a time line, if it has none: not one of the model's, only its end will be known exactly."""
        if device not in self._lines:
            first = self.cuda.event(False)
            first.record()
            self._lines[device], self._pool[device] = DeviceLine(first, perf_counter_ns()), []

    def _stamp_capture(self, thread: int, edge: int) -> None:
        if self.capture_fault is not None:
            return
        try:
            event = self.cuda.event(True)
            event.record()
        except (RuntimeError, TypeError) as error:
            self.capture_fault = " ".join(str(error).split())
            return
        self.captured.append((thread, edge, event))

    def harvest(self) -> None:
        """Read the events that the device has passed, without waiting for any."""
        if self.cuda.capturing():
            return  # to ask an event how far it is would break the capture
        self._read(lambda event: bool(event.query()))

    def stop(self) -> None:
        """Wait for the devices, read all that is left, and align the lines at their end."""
        for device in self._lines:
            self.cuda.synchronize(device)
        self._read(lambda event: True)
        for device, line in self._lines.items():
            line.align(*self._ping(device), start_known=device in self._aligned)

    def _read(self, passed: Callable[[Any], bool]) -> None:
        for edges in self._edges.values():
            while edges.waiting:
                device, event = edges.waiting[0]
                if event is not None and not passed(event):
                    break
                edges.waiting.popleft()
                edges.devices.append(device)
                edges.times.append(_NO_TIME if event is None else self._read_one(device, event))

    def _read_one(self, device: int, event: Any) -> int:
        line = self._lines[device]
        time = line.time_of(event)
        if not line.move_anchor(event, time):
            self._pool[device].append(event)
        return time

    def line(self, device: int) -> DeviceLine:
        """A device's time line."""
        return self._lines[device]

    def measured(self, calls: pd.DataFrame, edges: pd.DataFrame) -> dict[str, Any]:
        """Device columns; missing where a call has no end on the device, or was captured into a graph."""
        begin, end = (np.full(len(calls), _NO_TIME) for _ in range(2))
        for thread, seen in self._edges.items():
            times, devices = np.array(seen.times), np.array(seen.devices)
            for device, line in self._lines.items():
                here = (devices == device) & (times != _NO_TIME)
                times[here] = line.corrected(times[here])
            rows = np.flatnonzero(edges["thread"].to_numpy() == thread)
            for found, name in ((begin, "begin"), (end, "end")):
                at = edges[name].to_numpy()[rows]
                there = at < len(times)
                found[rows[there]] = times[at[there]]
        known = (begin != _NO_TIME) & (end != _NO_TIME)
        start = begin - self._origin_ns - edges["paused"].to_numpy()
        return device_columns(calls, start, end - begin, known)

    def facts(self) -> dict[str, Any]:
        """Why graphs could not be timed, if one was captured and they could not."""
        return {"graphs_untimed": self.capture_fault} if self.capture_fault else {}


def device_columns(calls: pd.DataFrame, start: np.ndarray, time: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    """The three columns from each call's start and time; self time is less that of the calls it made."""
    parent = calls["parent"].to_numpy(dtype=np.int64, na_value=-1)
    inside = np.zeros(len(calls), dtype=np.int64)
    nested = known & (parent >= 0)
    np.add.at(inside, parent[nested], time[nested])
    return {
        name: pd.arrays.IntegerArray(values.astype(np.int64), ~known)
        for name, values in (("device_start_ns", start), ("device_ns", time), ("device_self_ns", time - inside))
    }
