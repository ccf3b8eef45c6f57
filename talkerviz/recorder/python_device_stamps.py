"""Device stamps of calls in Python, the twin of `native/device_stamps.c` for installations without a C compiler."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

NO_TIME = -1
NO_DEVICE, SEVERAL_DEVICES, SKIPPED = -1, -2, -3
"""Values in the place of a device: of a module without weights, of one whose weights end on another device than they
begin on, and of a call that is not stamped."""

_MAX_NS_FROM_ANCHOR = 100_000_000  # elapsed times are floats of milliseconds: exact to nanoseconds only over 0.1 s
_READS_PER_STAMP = 2  # more than the one event that a stamp takes, so that none pile up
_KEPT_WAITING = 128  # latest events, which the device has likely not passed yet
_SKIPPED_READS = 16  # stamps without a try to read, after one that found nothing passed
_MORE_EVENTS = 64  # events made at once when none is free
_MEASURED_FRAMES = 3  # frames, after the first, by which `every` is chosen
_MIN_STAMP_SHARE = 0.01  # of a frame's time, for stamps, if the recorder alone takes the whole budget


@dataclass
class _Thread:
    times: array[int] = field(default_factory=lambda: array("q"))
    devices: array[int] = field(default_factory=lambda: array("h"))
    pauses: array[int] = field(default_factory=lambda: array("q"))  # stamps before it, begin, end
    waiting: deque[tuple[array[int], int, Any, int]] = field(default_factory=deque)  # array, index, event, device
    open: dict[int, int] = field(default_factory=dict)  # device of each open call, by depth
    reads_to_skip: int = 0
    device: int = NO_DEVICE


@dataclass
class _FrameCost:
    plain_ns: int = 0  # time without the recorder
    recorder_ns: int = 0  # time of the recorder, the stamps included; while the frame lasts, that before it
    spent_ns: int = 0  # time of the stamps
    stamps: int = 0
    of_level: list[int] = field(default_factory=lambda: [0, 0])


class PythonDeviceStamps:
    """Stamps of the calls of all threads.

    Args:
        functions: addresses of a runtime's functions, for the twin in C; not used here.
        make_event: makes an event with the methods of `torch.Event`.
        stream_of: returns the current stream of a device.
        current: returns the index of the current device.
        capturing: returns whether the current stream captures a graph; None if none can.
        on_capture: called with (thread, stamp, depth) for a stamp on a stream that captures.
        module_devices: device of each module by number, as int16: an index or a constant in the place of one.
        ring: number of events that are made beforehand on each device.
        budget: share of a frame's time for the recorder; 0 to stamp every call.

    Attributes:
        fault: reason for which stamps have ended; empty for none.
    """

    def __init__(
        self,
        functions: None,
        make_event: Callable[[], Any],
        stream_of: Callable[[int], Any],
        current: Callable[[], int],
        capturing: Callable[[], bool] | None,
        on_capture: Callable[[int, int, int], None],
        module_devices: bytes,
        ring: int,
        budget: float,
    ) -> None:
        self._make_event, self._stream_of, self._current = make_event, stream_of, current
        self._capturing, self._on_capture = capturing, on_capture
        self._module_devices = array("h", module_devices)
        self._ring, self._budget = ring, budget
        self._anchors: dict[int, tuple[Any, int]] = {}
        self._free: dict[int, list[Any]] = {}
        self._threads: dict[int, _Thread] = {}
        self._captures = 0
        self._every, self._levels = (0 if budget > 0 else 1), 2
        self._frame_number, self._frame_began_ns = -1, 0
        self._frame, self._measured = _FrameCost(), list[_FrameCost]()
        self.fault = ""

    def stamp_call(
        self, thread: int, entry: bool, depth: int, module: int, tensor_device: int, frame: int, recorder_ns: int
    ) -> None:
        """Stamp the entry or exit of a call.

        Args:
            thread: number of the thread.
            entry: whether the call begins; at its exit the arguments after `depth` are not read.
            depth: number of open calls around it.
            module: number of its module.
            tensor_device: index of the device of its first tensor on an accelerator; -1 for none.
            frame: number of its frame; -1 for none.
            recorder_ns: time that the recorder has taken on this thread so far.
        """
        of_thread = self._thread(thread)
        chooses = self._every == 0 and thread == 0
        if entry:
            if chooses and frame != self._frame_number:
                self._begin_frame(frame, recorder_ns)
            of_thread.open[depth] = self._device_of(depth, module, tensor_device, frame)
        began = perf_counter_ns()
        self._stamp_on(of_thread, thread, of_thread.open.get(depth, SKIPPED), depth)
        if chooses:
            self._frame.spent_ns += perf_counter_ns() - began
            self._frame.stamps += 1
            if depth < len(self._frame.of_level):
                self._frame.of_level[depth] += 1

    def stamp(self, thread: int) -> None:
        """Stamp on the current device."""
        self._stamp_on(self._thread(thread), thread, self._current(), 0)

    def pause(self, thread: int, begins: bool) -> None:
        """Stamp the begin or end of a pause of the recorder inside calls."""
        of_thread = self._thread(thread)
        if begins:
            of_thread.pauses.extend((len(of_thread.times), NO_TIME, NO_TIME))
        if of_thread.pauses and not self.fault:
            target = len(of_thread.pauses) - (2 if begins else 1)
            self._guarded(lambda: self._record(of_thread, thread, of_thread.pauses, target, of_thread.device, 0))

    def _thread(self, number: int) -> _Thread:
        return self._threads.get(number) or self._threads.setdefault(number, _Thread())

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.fault = self.fault or str(error)

    def _stamp_on(self, thread: _Thread, number: int, device: int, depth: int) -> None:
        thread.times.append(NO_TIME)
        thread.devices.append(device)
        if device < 0 or self.fault:
            return
        thread.device = device
        self._guarded(lambda: self._record(thread, number, thread.times, len(thread.times) - 1, device, depth))
        if len(thread.waiting) <= _KEPT_WAITING or self._captures:
            return
        if thread.reads_to_skip:
            thread.reads_to_skip -= 1
        else:
            self._guarded(lambda: self._read(thread, _READS_PER_STAMP, lambda event: bool(event.query())))

    def _record(self, thread: _Thread, number: int, times: array[int], target: int, device: int, depth: int) -> None:
        if device < 0:
            return
        stream = self._stream_of(device)
        if self._capturing is not None and self._capturing():
            if times is thread.times:
                self._on_capture(number, target, depth)
            return
        self.begin_line(device, stream)
        event = self._take_event(device, stream)
        if event is not None and device in self._anchors:
            event.record(stream)
            thread.waiting.append((times, target, event, device))

    def begin_line(self, device: int, stream: Any) -> None:
        """Begin the time line of a device, if it has none; the host's time of its first event is not exact."""
        if device not in self._anchors and not self._captures:
            anchor = self._make_event()
            anchor.record(stream)
            self._anchors[device] = anchor, perf_counter_ns()

    def _take_event(self, device: int, stream: Any) -> Any:
        free = self._free.setdefault(device, [])
        if not free and not self._captures:
            self.prepare(device, stream, _MORE_EVENTS)
        try:
            return free.pop()
        except IndexError:  # a capture is open, or another thread was faster
            return None

    def _read(self, thread: _Thread, limit: float, passed: Callable[[Any], bool]) -> None:
        while limit > 0 and thread.waiting:
            limit -= 1
            oldest = thread.waiting.popleft()
            times, target, event, device = oldest
            if not passed(event):
                thread.waiting.appendleft(oldest)
                thread.reads_to_skip = _SKIPPED_READS
                return
            time = times[target] = self.time_of(device, event)
            if time - self._anchors[device][1] >= _MAX_NS_FROM_ANCHOR:
                self._anchors[device] = event, time
            else:
                self._free[device].append(event)

    def _begin_frame(self, number: int, recorder_ns: int) -> None:
        now, ended = perf_counter_ns(), self._frame
        if self._frame_number > 0 and number == self._frame_number + 1 and ended.stamps:  # the first frame is slow
            ended.recorder_ns = recorder_ns - ended.recorder_ns
            ended.plain_ns = now - self._frame_began_ns - ended.recorder_ns
            if ended.plain_ns > 0:
                self._measured.append(ended)
            if len(self._measured) == _MEASURED_FRAMES:
                # The fastest: another process may have held up the others.
                self._choose(min(self._measured, key=lambda frame: frame.plain_ns))
        self._frame_number, self._frame_began_ns = number, now
        self._frame = _FrameCost(recorder_ns=recorder_ns)

    def _choose(self, frame: _FrameCost) -> None:
        """Choose `every` and `levels` from a frame all of whose calls were stamped."""
        every_call = frame.spent_ns / frame.plain_ns
        left = max(_MIN_STAMP_SHARE, self._budget - (frame.recorder_ns / frame.plain_ns - every_call))
        if every_call <= left:
            self._every = 1
            return
        first, second = (every_call * sum(frame.of_level[:levels]) / frame.stamps for levels in (1, 2))
        self._levels = 2 if second <= left / 2 else 1
        always = second if self._levels == 2 else first
        self._every = max(1, math.ceil((every_call - always) / max(left - always, left / 4)))

    def _device_of(self, depth: int, module: int, tensor_device: int, frame: int) -> int:
        if not (self._every <= 1 or depth < self._levels or frame < 0 or frame % self._every == 0):
            return SKIPPED
        device = self._module_devices[module] if 0 <= module < len(self._module_devices) else NO_DEVICE
        if device == NO_DEVICE:
            device = tensor_device
        return self._current() if device == NO_DEVICE else device

    def prepare(self, device: int, stream: Any, count: int | None = None) -> None:
        """Make the events of a device, and record each once, since the first record of an event is slow."""
        for _ in range(self._ring if count is None else count):
            event = self._make_event()
            event.record(stream)
            self._free.setdefault(device, []).append(event)

    def ping(self, device: int, stream: Any, synchronize: Callable[[int], None], begins: bool) -> tuple[int, int, int]:
        """Record an event that the host waits for.

        Args:
            device: the device.
            stream: its current stream.
            synchronize: waits for a device.
            begins: whether times are measured from this event on.

        Returns:
            Host times before and after, and the event's time on the device's line, in nanoseconds.
        """
        event = self._make_event()
        synchronize(device)
        before = perf_counter_ns()
        event.record(stream)
        synchronize(device)
        after = perf_counter_ns()
        if begins:
            self._anchors[device] = event, (before + after) // 2
            return before, after, 0
        return before, after, self.time_of(device, event)

    def time_of(self, device: int, event: Any) -> int:
        """Return the time of an event on the device's line in nanoseconds."""
        anchor, anchor_ns = self._anchors[device]
        milliseconds: float = anchor.elapsed_time(event)
        return anchor_ns + round(milliseconds * 1e6)

    def forget_device(self, module: int) -> None:
        """Take the device of a module's calls from their tensors from here on."""
        if 0 <= module < len(self._module_devices):
            self._module_devices[module] = NO_DEVICE

    def hold(self, change: int) -> None:
        """Note that a capture, during which no event is read or made, begins (1) or ends (-1)."""
        self._captures += change

    def settle(self) -> None:
        """Read all events; the devices have passed them."""
        for thread in list(self._threads.values()):
            self._read(thread, math.inf, lambda event: True)

    def take(self, thread: int) -> tuple[bytes, bytes, bytes]:
        """Return a thread's times (int64), devices (int16), and pauses (stamps before it, begin, end; int64)."""
        of_thread = self._threads.get(thread, _Thread())
        return of_thread.times.tobytes(), of_thread.devices.tobytes(), of_thread.pauses.tobytes()

    def count(self, thread: int) -> int:
        """Return the number of a thread's stamps."""
        return len(self._thread(thread).times)

    def threads(self) -> int:
        """Return the number of threads."""
        return max(self._threads, default=-1) + 1

    def lines(self) -> list[int]:
        """Return the devices with a time line."""
        return sorted(self._anchors)

    def sampling(self) -> tuple[int, int]:
        """Return the `every` and `levels` that were chosen."""
        return max(1, self._every), self._levels
