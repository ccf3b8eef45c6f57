"""Flight recorder: the last frames of a run in bounded memory, and a file for each frame that was late."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

from talkerviz.recorder.event_writer import EventWriter
from talkerviz.trace.event_log import MARK, Log, Mark, Names, read_log
from talkerviz.trace.late_frames import OUTSIDE_MODULES, LateFrame
from talkerviz.trace.log_tables import log_frame
from talkerviz.trace.parquet import check_name, write_log
from talkerviz.trace.schema import ModuleInfo

_RING_FRAMES = 32  # frames kept in memory, by whose times a module's usual time is known
_RING_BYTES = 64 << 20  # of events; frames of many calls are fewer
_MAX_FILES = 100  # of late frames; further ones are counted
_MIN_FRAMES_FOR_MEDIAN = 8  # first frames are slow, and a median of fewer says little

_logger = logging.getLogger("talkerviz")


@dataclass
class _Frame:
    number: int
    began_ns: int
    latency_ns: int = -1
    disturbed: bool = False  # a file was being written meanwhile
    batches: list[tuple[int, bytes]] = field(default_factory=list)  # by thread

    @property
    def bytes(self) -> int:
        return sum(len(batch) for _, batch in self.batches)


@dataclass(frozen=True)
class Deadline:
    """What makes a frame late, and how much of the run around it is kept.

    Attributes:
        deadline_ns: latency above which a frame is late; None for no fixed one.
        slower_than: multiple of the median latency above which a frame is late; None for none.
        keep: number of frames kept before and after a late one.
        file: path of the trace; late frames have its name with `.late` and their number.
    """

    deadline_ns: int | None
    slower_than: float | None
    keep: int
    file: Path

    def limit_ns(self, latencies: Sequence[int]) -> int | None:
        """Return the least latency that is late.

        Args:
            latencies: those of the last frames.
        """
        limits = [] if self.deadline_ns is None else [self.deadline_ns]
        if self.slower_than is not None and len(latencies) >= _MIN_FRAMES_FOR_MEDIAN:
            limits.append(round(self.slower_than * median(latencies)))
        return min(limits, default=None)


def deadline_of(deadline_ms: float | None, slower_than: float | None, keep: int, file: Path) -> Deadline:
    """Check and convert the arguments of `talkerviz.flight_recorder`.

    Raises:
        ValueError: an argument is out of its range.
    """
    if deadline_ms is None and slower_than is None:
        raise ValueError("flight_recorder: nothing is late; give deadline_ms, as 80, or slower_than, as 1.5")
    if deadline_ms is not None and not deadline_ms > 0:
        raise ValueError(f"deadline_ms must be above 0, not {deadline_ms}")
    if slower_than is not None and not slower_than > 1:
        raise ValueError(f"slower_than must be above 1, not {slower_than}")
    if keep < 0:
        raise ValueError(f"keep must be at least 0, not {keep}")
    check_name(file)
    return Deadline(None if deadline_ms is None else round(deadline_ms * 1e6), slower_than, keep, file.absolute())


class FlightRecorder:
    """Output of a recording that keeps the last frames alone, in the place of `TraceOutput`.

    A frame during which a file is written is not judged: it shares the interpreter with the writer.

    Args:
        deadline: what is late.
        names: names that numbers in events refer to.
        parts: names of positions in containers, by name.
        modules: the modules at the start, by number.
        facts: returns the facts of the run.
        origin_ns: host time that counts as 0.
        finish: makes the final log of one that was read.

    Attributes:
        late: frames that were late and have a file.
        uncounted: number of late frames without a file, as there were too many.
        file: None: late frames have files of their own.
        lost: reason for which events are missing; None if there are all.
    """

    def __init__(
        self,
        deadline: Deadline,
        names: Names,
        parts: Mapping[str, int],
        modules: tuple[ModuleInfo, ...],
        facts: Callable[[], Mapping[str, Any]],
        origin_ns: int,
        finish: Callable[[Log], Log],
    ) -> None:
        self.late: list[LateFrame] = []
        self.uncounted = 0
        self.file: Path | None = None
        self.lost: str | None = None
        self._deadline, self._names, self._parts, self._modules = deadline, names, parts, modules
        self._facts, self._origin_ns, self._finish = facts, origin_ns, finish
        self._rows: list[bytes] = []
        self._ring: deque[_Frame] = deque()
        self._current = _Frame(-1, origin_ns)
        self._waiting: list[tuple[_Frame, int]] = []  # late frames whose following frames are still to come
        self._writers: list[threading.Thread] = []
        self._events: Any = None
        self._lock = threading.RLock()

    def attach(self, events: Any) -> None:
        """Begin to keep the events of this log."""
        self._events = events

    def write(self, events: Any, thread: int) -> None:
        """Move a thread's events from the log to the current frame."""
        with self._lock:
            batch, rows = events.take(thread), events.take_rows()
            if batch:
                self._current.batches.append((thread, batch))
            if rows:
                self._rows.append(rows)

    def on_mark(self, mark: Mark, phase: int) -> None:
        """End the current frame if the mark begins another.

        Args:
            mark: the mark that the calling thread enters.
            phase: number of its phase.
        """
        number = -1 if mark.frame is None else mark.frame
        with self._lock:
            if number == self._current.number:
                return
            now = perf_counter_ns()
            for thread in range(self._events.threads()):
                self.write(self._events, thread)
            # The mark itself went with the events before it.
            step = -1 if mark.step is None else mark.step
            self._events.put(MARK, phase, now, (number + 1) << 24 | (step + 1))
            ended, self._current = self._current, _Frame(number, now)
            self._current.disturbed = self._is_writing()
            if ended.number >= 0:
                ended.latency_ns = now - ended.began_ns
                self._keep(ended)

    def _keep(self, frame: _Frame) -> None:
        limit = self._deadline.limit_ns([other.latency_ns for other in self._ring])
        self._ring.append(frame)
        for late, late_limit in list(self._waiting):
            if frame.number >= late.number + self._deadline.keep:
                self._waiting.remove((late, late_limit))
                self._save_soon(late, late_limit)
        if limit is not None and frame.latency_ns > limit and not frame.disturbed and not self._is_writing():
            if len(self.late) + len(self._waiting) >= _MAX_FILES:
                self.uncounted += 1
            elif self._deadline.keep:
                self._waiting.append((frame, limit))
            else:
                self._save_soon(frame, limit)
        while len(self._ring) > _RING_FRAMES or sum(other.bytes for other in self._ring) > _RING_BYTES:
            self._ring.popleft()

    def _save_soon(self, late: _Frame, limit_ns: int) -> None:
        """Write a late frame's file on another thread: the next frame has a deadline too."""
        frames = list(self._ring)
        log = self._log(frames)
        writer = threading.Thread(target=self._save, args=(late, limit_ns, frames, log), daemon=True)
        self._writers = [thread for thread in self._writers if thread.is_alive()] + [writer]
        self._current.disturbed = True
        writer.start()

    def _is_writing(self) -> bool:
        return any(writer.is_alive() for writer in self._writers)

    def _log(self, frames: Sequence[_Frame]) -> bytes:
        """Return the raw log of some frames."""
        self._names.parts += list(self._parts)[len(self._names.parts) :]
        self._rows = [b"".join(self._rows)]
        writer = EventWriter(None, self._modules, self._facts(), self._origin_ns, True)
        writer.write(0, b"", self._rows[0], self._names)
        for frame in frames:
            for thread, batch in frame.batches:
                writer.write(thread, batch, b"", self._names)
        content = writer.close()
        assert isinstance(content, bytes)
        return content

    def _save(self, late: _Frame, limit_ns: int, frames: Sequence[_Frame], content: bytes) -> None:
        try:
            log = self._finish(read_log(content))
            module, module_ns, usual_ns = _slowest(log, late, frames)
            path = self._deadline.file
            file = path.with_name(f"{path.stem}.late{late.number}{path.suffix}")
            result = LateFrame(late.number, late.latency_ns, limit_ns, module, module_ns, usual_ns, file)
            facts = {key: value for key, value in result._asdict().items() if key != "file"}
            near = [frame for frame in frames if abs(frame.number - late.number) <= self._deadline.keep]
            log = self._finish(read_log(self._log(near)))
            write_log(file, log, log.modules, {**self._facts(), "late": facts})
            self.late.append(result)
            _logger.warning(result.line)
        except Exception as error:
            self.lost = self.lost or f"{type(error).__name__}: {error}"

    def fail(self, error: Exception) -> None:
        """Note the first error by which events are missing."""
        self.lost = self.lost or f"{type(error).__name__}: {error}"

    def close(self) -> bytes:
        """Write the files that are waiting, and return the raw log of the last frames."""
        with self._lock:
            for late, limit in self._waiting:
                self._save_soon(late, limit)
            self._waiting = []
            frames = [*self._ring, self._current]
        for writer in self._writers:
            writer.join()
        return self._log(frames)

    def release(self) -> None:
        """Release nothing: there is no file that other runs must not write."""

    def remove_partial(self) -> None:
        """Remove nothing: there is no partial file."""

    def settle(self) -> None:
        """Leave `file` as it is."""


def _slowest(log: Log, late: _Frame, frames: Sequence[_Frame]) -> tuple[str, int, int]:
    """Return the module that took most time more than usual in a frame, its self time and its usual one."""
    calls, _ = log_frame(log)
    calls = calls[calls["frame"].notna()]
    times = (
        calls.groupby([calls["path"].astype(str), calls["frame"].astype(int)])["host_self_ns"]
        .sum()
        .unstack(fill_value=0)
    )
    latency = {frame.number: frame.latency_ns for frame in frames}
    numbers = [number for number in times.columns if number in latency]
    times = times[numbers]
    times.loc[OUTSIDE_MODULES] = [max(0, latency[number] - int(times[number].sum())) for number in numbers]
    usual = times.drop(columns=late.number).median(axis=1).fillna(0)
    module = str((times[late.number] - usual).idxmax())
    return module, int(times[late.number][module]), int(usual[module])
