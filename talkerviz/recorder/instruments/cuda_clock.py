"""CUDA clock: device times of calls, from an event on the current stream at each entry and exit.

Nothing waits inside the run. Events that the device has passed are read when a batch of the log is written to disk, the
others when the run is over, and all are reused. Device times are aligned with the host's clock by events whose host
time is known, at the start and at the end.
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

from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo

_PINGS = 10  # tries to time an event on the host; the shortest round trip counts
# `elapsed_time` is a float32 of milliseconds: exact to nanoseconds only over short intervals, such as 0.1 s.
_MAX_NS_FROM_ANCHOR = 100_000_000
_NO_TIME = -1


def _event(external: bool) -> Any:
    event: Any = torch.cuda.Event  # not typed
    # Not every torch has external events; only captures need them.
    return event(enable_timing=True, external=True) if external else event(enable_timing=True)


@dataclass(frozen=True)
class Cuda:
    """Functions of the CUDA runtime that the clock uses; tests pass a fake."""

    event: Callable[[bool], Any] = _event
    device: Callable[[], int] = lambda: torch.cuda.current_device()
    capturing: Callable[[], bool] = lambda: torch.cuda.is_current_stream_capturing()
    synchronize: Callable[[int], None] = lambda device: torch.cuda.synchronize(device)
    select: Callable[[int], Any] = lambda device: torch.cuda.device(device)


class DeviceLine:
    """Time line of one device, in nanoseconds on the host's clock.

    Args:
        anchor: an event that the device has passed; times are measured from it.
        host_ns: host time at which it did.
    """

    def __init__(self, anchor: Any, host_ns: int) -> None:
        self._anchor, self._anchor_ns = anchor, host_ns
        self._first_ns = host_ns
        self._scale, self._shift = 1.0, 0

    def time_of(self, event: Any) -> int:
        """Return the time at which the device passed an event, before `corrected` is applied."""
        time = self._anchor_ns + round(self._anchor.elapsed_time(event) * 1e6)
        return int(time)

    def move_anchor(self, event: Any, time: int) -> bool:
        """Measure from this event on if it is far from the anchor; return whether, as it must not be reused then."""
        if time - self._anchor_ns < _MAX_NS_FROM_ANCHOR:
            return False
        self._anchor, self._anchor_ns = event, time
        return True

    def align(self, event: Any, host_ns: int, start_known: bool) -> None:
        """Correct the line by an event at its end whose host time is known."""
        device_ns = self.time_of(event)
        if start_known and device_ns > self._first_ns:
            self._scale = (host_ns - self._first_ns) / (device_ns - self._first_ns)
        else:
            self._shift = host_ns - device_ns

    def corrected(self, times: np.ndarray) -> np.ndarray:
        """Return times of this line, corrected by what `align` found."""
        moved = self._first_ns + (times - self._first_ns) * self._scale + self._shift
        return np.asarray(np.rint(moved), dtype=np.int64)


@dataclass
class _Stamps:
    """Stamps of one thread: times and devices of those that were read, and events of those that were not yet."""

    times: array[int] = field(default_factory=lambda: array("q"))
    devices: array[int] = field(default_factory=lambda: array("q"))
    waiting: deque[tuple[int, Any]] = field(default_factory=deque)


class CudaClock(Instrument):
    """Instrument that gives `device_start_ns`, `device_ns` and `device_self_ns`.

    Args:
        run: the recording.
        cuda: the runtime.

    Attributes:
        cuda: the runtime.
        captured: thread, stamp and event of each event captured into the graph being captured, which a replay passes.
        aligned: whether the run is over and device times are aligned with the host's clock.
    """

    def __init__(self, run: RunContext, cuda: Cuda | None = None) -> None:
        self.cuda = cuda or Cuda()
        self.captured: list[tuple[int, int, Any]] = []
        self.aligned = False
        self._thread = run.thread
        self._origin_ns = run.origin_ns
        self._devices = run.devices
        self._stamps: dict[int, _Stamps] = {}  # by thread
        self._pool: dict[int, list[Any]] = {}  # events to reuse, by device
        self._lines: dict[int, DeviceLine] = {}
        self._capture_fault: str | None = None

    def attach(self, undo: Undo) -> None:
        """Measure the offset between each device's clock and the host's."""
        for device in self._devices:
            self._lines[device], self._pool[device] = DeviceLine(*self._ping(device)), []

    def _ping(self, device: int) -> tuple[Any, int]:
        """Return an event and the host time at which the device passed it: the best of `_PINGS` tries."""
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

    def stamp(self, entry: bool) -> None:
        """Record an event on the current stream."""
        thread, device = self._thread(), self.cuda.device()
        stamps = self._stamps.get(thread)
        if stamps is None:
            stamps = self._stamps[thread] = _Stamps()
        if self.cuda.capturing():
            self._stamp_capture(thread, len(stamps.times) + len(stamps.waiting))
            stamps.waiting.append((device, None))
            return
        if device not in self._lines:
            self.add_device(device)
        pool = self._pool[device]
        event = pool.pop() if pool else self.cuda.event(False)
        event.record()
        stamps.waiting.append((device, event))

    def add_device(self, device: int) -> None:
        """Begin the time line of a device that no parameter is on, if it has none; only its end is aligned."""
        if device not in self._lines:
            first = self.cuda.event(False)
            first.record()
            self._lines[device], self._pool[device] = DeviceLine(first, perf_counter_ns()), []

    def _stamp_capture(self, thread: int, stamp: int) -> None:
        if self._capture_fault is not None:
            return
        try:
            event = self.cuda.event(True)
            event.record()
        except (RuntimeError, TypeError) as error:
            self._capture_fault = " ".join(str(error).split())
            return
        self.captured.append((thread, stamp, event))

    def on_write(self) -> None:
        """Read the events that the device has passed, without waiting for any."""
        if self.cuda.capturing():
            return  # a query of an event would break the capture
        self._read(lambda event: bool(event.query()))

    def stop(self) -> None:
        """Wait for the devices, read the events left, and align the time lines at their end."""
        for device in self._lines:
            self.cuda.synchronize(device)
        self._read(lambda event: True)
        for device, line in self._lines.items():
            line.align(*self._ping(device), start_known=device in self._devices)
        self.aligned = True

    def _read(self, passed: Callable[[Any], bool]) -> None:
        for stamps in self._stamps.values():
            while stamps.waiting:
                device, event = stamps.waiting[0]
                if event is not None and not passed(event):
                    break
                stamps.waiting.popleft()
                stamps.devices.append(device)
                stamps.times.append(_NO_TIME if event is None else self._read_event(device, event))

    def _read_event(self, device: int, event: Any) -> int:
        line = self._lines[device]
        time = line.time_of(event)
        if not line.move_anchor(event, time):
            self._pool[device].append(event)
        return time

    def line(self, device: int) -> DeviceLine:
        """Return the time line of a device."""
        return self._lines[device]

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return the device columns; missing where a call has no end on the device, or was captured into a graph."""
        begin, end = (np.full(len(calls), _NO_TIME) for _ in range(2))
        for thread, stamps in self._stamps.items():
            times, devices = np.array(stamps.times), np.array(stamps.devices)
            for device, line in self._lines.items():
                here = (devices == device) & (times != _NO_TIME)
                times[here] = line.corrected(times[here])
            rows = np.flatnonzero(edges["thread"].to_numpy() == thread)
            for column, name in ((begin, "begin"), (end, "end")):
                index = edges[name].to_numpy()[rows]
                stamped = index < len(times)
                column[rows[stamped]] = times[index[stamped]]
        known = (begin != _NO_TIME) & (end != _NO_TIME)
        start = begin - self._origin_ns - edges["paused"].to_numpy()
        # The reason for which a captured graph could not be timed.
        facts = {"graphs_untimed": self._capture_fault} if self._capture_fault else {}
        return Readings(device_columns(calls, start, end - begin, known), facts)


def device_columns(calls: pd.DataFrame, start: np.ndarray, time: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    """Return the three columns of each call; its self time is its time less that of the calls it made.

    Args:
        calls: the calls table, for `parent`.
        start: start of each call, nanoseconds.
        time: time of each call, nanoseconds.
        known: whether the two are known.
    """
    parent = calls["parent"].to_numpy(dtype=np.int64, na_value=-1)
    inside = np.zeros(len(calls), dtype=np.int64)
    nested = known & (parent >= 0)
    np.add.at(inside, parent[nested], time[nested])
    return {
        name: pd.arrays.IntegerArray(values.astype(np.int64), ~known)
        for name, values in (("device_start_ns", start), ("device_ns", time), ("device_self_ns", time - inside))
    }
