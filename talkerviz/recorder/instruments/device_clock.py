"""Device clock: device times of calls, from an event on the device's current stream at each entry and exit.

Nothing waits inside the run. Device times are aligned with the host's clock by events whose host time is known, at the
start and at the end.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from talkerviz.recorder.dataflow.offloaded_weights import parameter_devices
from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo
from talkerviz.recorder.instruments.device_runtime import DeviceRuntime
from talkerviz.recorder.python_device_stamps import NO_DEVICE, NO_TIME, SEVERAL_DEVICES, SKIPPED
from talkerviz.recorder.tap import DeviceStamps

SAMPLED_BUDGET = 0.04
"""Share of a frame's time that recording may take, by which the frames with all calls stamped are chosen."""

_PINGS = 10  # tries to time an event on the host; the shortest round trip counts
_MAX_NAMED = 5  # modules named in the fact `several_devices`


@dataclass
class DeviceLine:
    """Correction of one device's times by events whose host time is known.

    Attributes:
        device_ns: time of the first such event on the device's line; 0 before any is known.
        host_ns: its time on the host's clock.
        exact: whether there was one at the start.
    """

    device_ns: int = 0
    host_ns: int = 0
    exact: bool = False
    scale: float = 1.0

    def align(self, device_ns: int, host_ns: int) -> None:
        """Correct the line by an event at its end, from its times by the two clocks."""
        if self.exact and device_ns > self.device_ns:
            self.scale = (host_ns - self.host_ns) / (device_ns - self.device_ns)
        elif not self.exact:
            self.device_ns, self.host_ns = device_ns, host_ns

    def corrected(self, times: np.ndarray) -> np.ndarray:
        """Return times of this line on the host's clock."""
        return np.asarray(np.rint(self.host_ns + (times - self.device_ns) * self.scale), dtype=np.int64)


def module_devices(modules: Iterable[nn.Module], device_type: str) -> array[int]:
    """Return for each module the index of the device that its calls begin and end on.

    It is that of its first and of its last weight, those of the modules inside it included: `NO_DEVICE` if none is on
    an accelerator, `SEVERAL_DEVICES` if the two differ.

    Args:
        modules: the modules.
        device_type: torch's name of the accelerator.
    """
    devices = array("h")
    for module in modules:
        ends = [device.index or 0 for device in parameter_devices(module) if device.type == device_type]
        devices.append(NO_DEVICE if not ends else ends[0] if ends[0] == ends[-1] else SEVERAL_DEVICES)
    return devices


class DeviceClock(Instrument):
    """Instrument that gives `device_start_ns`, `device_ns` and `device_self_ns`.

    Args:
        run: the recording.
        runtime: the accelerator's runtime.
        budget: share of a frame's time that recording may take: the frames whose calls are all stamped are chosen by
            it. 0 stamps every call.

    Attributes:
        runtime: the accelerator's runtime.
        captured: stamp, event and depth of each event in the graph that a thread captures, which a replay passes, by
            thread.
        budget: share of a frame's time that recording may take.
        aligned: whether the run is over and device times are aligned with the host's clock.
        stamps: the stamps of the run.
    """

    inside_tap = True  # the tap is made with the stamps, if the device can be timed

    def __init__(self, run: RunContext, runtime: DeviceRuntime, budget: float = SAMPLED_BUDGET) -> None:
        self.runtime = runtime
        self.captured: dict[int, list[tuple[int, Any, int]]] = {}
        self.budget = budget
        self.aligned = False
        self._run = run
        self._lines: dict[int, DeviceLine] = {}
        self._untimed: str | None = None
        self._capture_fault: str | None = None
        self.stamps = DeviceStamps(
            functions=runtime.functions,
            make_event=lambda: runtime.event(False),
            stream_of=runtime.stream_of,
            current=runtime.current,
            capturing=runtime.capturing,
            on_capture=self._stamp_capture,
            module_devices=module_devices(run.modules, run.device_type).tobytes(),
            ring=runtime.ring,
            budget=budget,
        )
        self.device_stamps = self.stamps

    def attach(self, undo: Undo) -> None:
        """Make events, and measure the offset between each device's clock and the host's."""
        try:
            for device in self._run.devices:
                self.stamps.ping(device, self.runtime.stream_of(device), self.runtime.synchronize, True)
                self._lines[device] = DeviceLine(*self._best_ping(device), exact=True)
                self.stamps.prepare(device, self.runtime.stream_of(device))
        except Exception as error:
            self.device_stamps, self._untimed = None, _one_line(error)

    def _best_ping(self, device: int) -> tuple[int, int]:
        """Return an event's time on the device's line and on the host's clock: the best of `_PINGS` tries."""
        tries = [
            self.stamps.ping(device, self.runtime.stream_of(device), self.runtime.synchronize, False)
            for _ in range(_PINGS)
        ]
        before, after, device_ns = min(tries, key=lambda times: times[1] - times[0])
        return device_ns, (before + after) // 2

    def stamp_collective(self, entry: bool) -> None:
        """Stamp on the current device."""
        if self._untimed is None:
            self.stamps.stamp(self._run.thread())

    def on_replica(self, replica: nn.Module, module: nn.Module) -> None:
        """Take the device of the module's calls from their tensors: replicas are on other devices."""
        for number, recorded in enumerate(self._run.modules):
            if recorded is module:
                self.stamps.forget_device(number)

    def _stamp_capture(self, thread: int, stamp: int, depth: int) -> None:
        if self._capture_fault is not None:
            return
        try:
            event = self.runtime.event(True)
            event.record()
        except (RuntimeError, TypeError) as error:
            self._capture_fault = _one_line(error)
            return
        self.captured.setdefault(thread, []).append((stamp, event, depth))

    def begin_line(self, device: int) -> None:
        """Begin the time line of a device that no weight is on, if it has none; only its end is aligned."""
        self.stamps.begin_line(device, self.runtime.stream_of(device))

    def stop(self) -> None:
        """Wait for the devices, read the events left, and align the time lines at their end."""
        if self._untimed is not None:
            return
        for device in self.stamps.lines():
            self.runtime.synchronize(device)
        self.stamps.settle()
        if self.stamps.fault:
            raise RuntimeError(self.stamps.fault)
        for device in self.stamps.lines():
            self._lines.setdefault(device, DeviceLine()).align(*self._best_ping(device))
        self.aligned = True

    def on_host(self, device: int, time: int) -> int:
        """Return a time on a device's line as time on the host's clock, once aligned."""
        return int(self._lines[device].corrected(np.array([time]))[0])

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return the device columns.

        They are missing where a call has no end on the device, was captured into a graph, begins and ends on
        different devices, or is in a frame that was not chosen.
        """
        if self._untimed is not None:
            return Readings(facts={"device_untimed": self._untimed})
        begin, end, pause, device = (np.full(len(calls), NO_TIME) for _ in range(4))
        differs = np.zeros(len(calls), dtype=bool)
        for thread in range(self.stamps.threads()):
            times, devices, paused = self._of_thread(thread)
            rows = np.flatnonzero(edges["thread"].to_numpy() == thread)
            first, last = (edges[name].to_numpy()[rows] for name in ("begin", "end"))
            stamped = (first < len(times)) & (last < len(times))
            rows, first, last = rows[stamped], first[stamped], last[stamped]
            begin[rows], end[rows], device[rows] = times[first], times[last], devices[first]
            pause[rows] = paused[last] - paused[first]
            differs[rows] = (devices[first] == SEVERAL_DEVICES) | (devices[first] != devices[last])
        known = (begin != NO_TIME) & (end != NO_TIME) & ~differs
        start = begin - self._run.origin_ns - edges["paused"].to_numpy()
        columns = device_columns(calls, start, np.maximum(end - begin - pause, 0), known)
        skipped = device == SKIPPED
        callers = calls["parent"][skipped | differs].dropna().unique().astype(np.int64)
        columns["device_self_ns"][callers] = pd.NA  # what the calls inside took is not known
        return Readings(columns, self._facts(calls, differs, skipped))

    def _of_thread(self, thread: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the times and devices of a thread's stamps, and the recorder's pauses before each in nanoseconds.

        A pause is the time between two events between which this thread gave the device nothing to do.
        """
        of_times, of_devices, of_pauses = self.stamps.take(thread)
        times, devices = np.frombuffer(of_times, np.int64).copy(), np.frombuffer(of_devices, np.int16)
        for device, line in self._lines.items():
            here = (devices == device) & (times != NO_TIME)
            times[here] = line.corrected(times[here])
        stamps_before, begin, end = np.frombuffer(of_pauses, np.int64).reshape(-1, 3).T
        took = np.where((begin != NO_TIME) & (end != NO_TIME), end - begin, 0)
        until = np.concatenate([[0], np.cumsum(took)])
        return times, devices, until[np.searchsorted(stamps_before, np.arange(len(times)), side="right")]

    def _facts(self, calls: pd.DataFrame, differs: np.ndarray, skipped: np.ndarray) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if self._capture_fault is not None:
            facts["graphs_untimed"] = self._capture_fault
        if differs.any():
            paths = list(dict.fromkeys(calls["path"][differs]))
            facts["several_devices"] = {"calls": int(differs.sum()), "modules": paths[:_MAX_NAMED]}
        if skipped.any():
            every, levels = self.stamps.sampling()
            frames = calls["frame"]
            left_out = frames[skipped].dropna().unique()
            whole = sorted({int(frame) for frame in frames.dropna().unique()} - {int(frame) for frame in left_out})
            facts["device_sampling"] = {"every": every, "levels": levels, "frames": whole}
        return facts


def _one_line(error: Exception) -> str:
    return " ".join(f"{error or type(error).__name__}".split())


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
