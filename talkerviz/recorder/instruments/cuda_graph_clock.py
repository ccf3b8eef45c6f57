"""CUDA graph clock: device times of calls inside replays of CUDA graphs.

Modules are called while a graph is captured, and not in a replay. So each entry and exit of a call leaves an event
inside the graph (`torch.cuda.Event(external=True)`, an event-record node), which every replay passes anew. It is read
before the next replay of that graph, which waits until the one before is over, and after the run.

Nothing runs while a graph is captured: those calls have the phase `capture`, and no frame. A replay's calls have the
phase that they were captured in, a frame further each time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import numpy as np
import pandas as pd
import torch

from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo
from talkerviz.recorder.instruments.device_clock import DeviceClock, device_columns
from talkerviz.recorder.method_patch import patch_method
from talkerviz.trace.calls_table import calls_frame

_OUTER_LEVELS = 2  # of calls that are timed in every replay
_MEASURED_REPLAYS = 3  # by which the others to read whole are chosen
_NO_TIME = -1


@dataclass
class _Replay:
    number: int  # among the replays of its capture
    mark: int  # number of the mark at the replay
    thread: int
    stamps: int  # number of the thread's stamps before the replay
    device: int
    stream: Any
    before: Any  # an event just before the replay
    after: Any  # an event just after the replay
    begun_ns: int  # by the host's clock
    start_ns: int = 0  # on the device's line
    # Nanoseconds from the replay's start to each captured event; `_NO_TIME` for those that were not read.
    times: np.ndarray | None = None


@dataclass
class _Capture:
    graph: Any  # kept alive, so that no other graph gets its `id`
    thread: int
    stamps: list[int]  # index of the stamp that left each event
    events: list[Any]
    outer: np.ndarray  # indices of the events of the outermost calls
    mark: int  # number of the mark at the capture
    replays: int = 0
    pending: _Replay | None = None  # the last replay, until its events are read
    spare: list[Any] = field(default_factory=list)  # events of replays that are read
    costs: list[tuple[int, int]] = field(default_factory=list)  # ns to read all events of a replay, and until then
    every: int = 0  # of so many replays one is read whole; 0 until it is chosen
    lock: threading.RLock = field(default_factory=threading.RLock)  # an event has the time of the latest replay alone


class CudaGraphClock(Instrument):
    """Instrument that follows captures and replays, and adds a replay's calls to the trace.

    Args:
        run: the recording.
        clock: the clock whose stamps are captured.
        owner: the class of graphs.
    """

    def __init__(self, run: RunContext, clock: DeviceClock, owner: type = torch.cuda.CUDAGraph) -> None:
        self._clock = clock
        self._run = run
        self._owner = owner
        self._captures: list[_Capture] = []
        self._latest: dict[int, _Capture] = {}  # by `id` of the graph, which may be captured again
        self._replays: list[tuple[_Capture, _Replay]] = []
        self._open_captures = 0
        self._whole = 0  # replays that were
        self._unread = 0  # replays whose events the next one passed before they could be read
        self._on_other_streams = 0  # replays on another stream than the one before

    def attach(self, undo: Undo) -> None:
        """Patch the methods of graphs that capture and replay."""
        patch_method(self._owner, "capture_begin", self._wrap_begin, undo)
        patch_method(self._owner, "capture_end", self._wrap_end, undo)
        patch_method(self._owner, "replay", self._wrap_replay, undo)

    def _hold(self, change: int) -> None:
        # In torch's usual mode of capture, reading an event on any thread ends the capture.
        self._open_captures += change
        self._clock.stamps.hold(change)

    def _wrap_begin(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_begin(graph: Any, *args: Any, **kwargs: Any) -> Any:
            self._latest.pop(id(graph), None)
            self._clock.captured.pop(self._run.thread(), None)
            self._hold(1)
            try:
                return original(graph, *args, **kwargs)
            except BaseException:
                self._hold(-1)
                raise

        return capture_begin

    def _wrap_end(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_end(graph: Any) -> Any:
            thread = self._run.thread()
            captured = self._clock.captured.pop(thread, [])
            try:
                result = original(graph)
            finally:
                self._hold(-1)
            if captured:
                stamps, events, depth = zip(*captured, strict=True)
                outer = np.flatnonzero(np.array(depth) < min(depth) + _OUTER_LEVELS)
                mark = self._run.mark_number()
                capture = _Capture(graph, thread, list(stamps), list(events), outer, mark)
                self._captures.append(capture)
                self._latest[id(graph)] = capture
            return result

        return capture_end

    def _wrap_replay(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def replay(graph: Any) -> Any:
            capture = self._latest.get(id(graph))
            if capture is None or self._clock.device_stamps is None:
                return original(graph)
            with capture.lock:
                begun = self._guarded(lambda: self._begin(capture))
                result = original(graph)
                if begun is not None:
                    self._guarded(begun.after.record)
                    capture.pending = begun
                    capture.replays += 1
            return result

        return replay

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            self._run.fault(error)
            return None

    def _begin(self, capture: _Capture) -> _Replay:
        runtime, thread = self._clock.runtime, self._run.thread()
        device = runtime.current()
        stream = runtime.stream_of(device)
        if capture.pending is not None and capture.pending.stream != stream:
            self._on_other_streams += 1
        if self._open_captures:
            self._unread += capture.pending is not None
            capture.pending = None
        else:
            self._read(capture)
        self._clock.begin_line(device)
        before, after = (capture.spare.pop() if capture.spare else runtime.event(False) for _ in range(2))
        stamps = self._clock.stamps.count(thread)
        begun = _Replay(
            capture.replays, self._run.mark_number(), thread, stamps, device, stream, before, after, perf_counter_ns()
        )
        before.record()
        return begun

    def _read(self, capture: _Capture) -> None:
        replay, capture.pending = capture.pending, None
        if replay is None:
            return
        replay.after.synchronize()
        whole = not self._clock.budget or capture.every <= 1 or replay.number % capture.every == 0
        self._whole += whole
        began = perf_counter_ns()
        replay.times = np.full(len(capture.events), _NO_TIME)
        for index in range(len(capture.events)) if whole else capture.outer:
            replay.times[index] = round(replay.before.elapsed_time(capture.events[index]) * 1e6)
        if self._clock.budget and not capture.every:
            self._choose(capture, perf_counter_ns() - began, began - replay.begun_ns)
        replay.start_ns = self._clock.stamps.time_of(replay.device, replay.before)
        capture.spare += [replay.before, replay.after]
        self._replays.append((capture, replay))

    def _choose(self, capture: _Capture, reading_ns: int, replay_ns: int) -> None:
        """Choose after some replays how many of them are read whole, from the time that this took."""
        capture.costs.append((reading_ns, replay_ns))
        if len(capture.costs) == _MEASURED_REPLAYS:
            reading, replay = (min(column) for column in zip(*capture.costs, strict=True))
            capture.every = max(1, math.ceil(reading / (self._clock.budget * max(replay, 1))))

    def stop(self) -> None:
        """Read the last replay of each capture, if the clock could be read."""
        if self._clock.aligned:
            for capture in self._captures:
                self._read(capture)

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return the numbers of timed and untimed replays, and of those that changed the stream, as facts."""
        if not self._captures or not self._clock.aligned:
            return Readings()
        facts = {"graph_replays": len(self._replays)}
        if self._whole < len(self._replays):
            facts["graph_replays_whole"] = self._whole
        if self._unread:
            facts["graph_replays_unread"] = self._unread
        if self._on_other_streams:
            facts["graph_stream_changes"] = self._on_other_streams
        return Readings(facts=facts)

    def add_calls(self, calls: pd.DataFrame, edges: pd.DataFrame) -> pd.DataFrame:
        """Return the calls and those of every replay, in the order in which they began.

        A replayed call has device times and no host times. If another phase or frame has begun since the capture, the
        call is in that one. A replay inside a recorded call is made by it.
        """
        if not self._captures or not self._clock.aligned:
            return calls
        row_of = {
            (int(thread), int(stamp)): row
            for name in ("begin", "end")
            for row, (thread, stamp) in enumerate(zip(edges["thread"], edges[name], strict=True))
        }
        events_of = {id(capture): _events_by_row(capture, row_of) for capture in self._captures}
        in_capture = sorted(row for events in events_of.values() for row in events)
        whole = _as_captured(calls, in_capture)
        added = []
        number = len(calls)
        inside = np.zeros(len(calls), dtype=np.int64)  # nanoseconds of the replays that a call made
        for capture, replay in self._replays:
            rows = sorted(events_of[id(capture)])
            if not rows:
                continue
            caller = _open_call(edges, replay.thread, replay.stamps)
            again = self._replayed(whole, calls, rows, events_of[id(capture)], capture, replay, number, caller)
            # Calls without a time come behind the call that they are in.
            order: Any = again["device_start_ns"].ffill()
            if caller is not None:
                inside[caller] += int(again["device_ns"][again["parent"] == caller].sum())
                # Where the host made the replay: the device may run it after later calls have begun.
                order = _latest_start(calls, edges, replay.thread, replay.stamps)
            added.append(again.assign(order=order))
            number += len(rows)
        order = whole["host_start_ns"].fillna(whole["device_start_ns"])
        whole = whole.assign(device_self_ns=whole["device_self_ns"] - inside, order=order)
        parts = [part.astype({"phase": object, "path": object, "class": object}) for part in (whole, *added)]
        return _renumbered(pd.concat(parts))

    def _replayed(
        self,
        whole: pd.DataFrame,
        calls: pd.DataFrame,
        rows: list[int],
        event_of: Mapping[int, Sequence[int]],
        capture: _Capture,
        replay: _Replay,
        number: int,
        caller: int | None,
    ) -> pd.DataFrame:
        """Return a replay's calls.

        Args:
            whole: the calls, those captured in the phase `capture`.
            calls: the calls, those captured in the phase that they were captured in.
            rows: the captured calls.
            event_of: entry and exit events of each.
            capture: the capture.
            replay: the replay.
            number: number of its first call.
            caller: the call that the replay is made in; None for none.
        """
        assert replay.times is not None
        again = calls.iloc[rows].reset_index(drop=True)
        new_number = dict(zip(calls["call"].iloc[rows], range(number, number + len(rows)), strict=True))
        inner = [new_number.get(parent) for parent in again["parent"]]
        depth = again["depth"] - again["depth"].min()
        if caller is not None:
            depth += whole["depth"].iloc[caller] + 1
        if replay.mark == capture.mark:
            frames = again["frame"]
            again["frame"] = frames + replay.number * (frames.max() - frames.min() + 1)
        else:
            mark = self._run.marks[replay.mark]
            again["phase"] = mark.phase
            again["frame"], again["step"] = (
                pd.array([value] * len(rows), dtype="Int64") for value in (mark.frame, mark.step)
            )
        begin, end = (replay.times[[event_of[row][at] for row in rows]] for at in range(2))
        base = self._clock.on_host(replay.device, replay.start_ns) - self._run.origin_ns
        local = again.assign(parent=pd.array([None if one is None else one - number for one in inner], dtype="Int64"))
        known = (begin != _NO_TIME) & (end != _NO_TIME)
        times = device_columns(local, begin + base, end - begin, known)
        callers = local["parent"][~known].dropna().unique().astype(np.int64)
        times["device_self_ns"][callers] = pd.NA  # what the calls inside took is not known
        parents = [caller if parent is None else parent for parent in inner]
        replayed: pd.DataFrame = again.assign(
            call=list(new_number.values()),
            parent=pd.array(parents, dtype="Int64"),
            depth=depth,
            thread=replay.thread,
            run=self._run.marks[replay.mark].run,
            host_start_ns=pd.NA,
            host_ns=pd.NA,
            host_self_ns=pd.NA,
            error=None,
            **times,
        )
        return replayed


def _events_by_row(capture: _Capture, row_of: Mapping[tuple[int, int], int]) -> dict[int, list[int]]:
    """Return the indices of the entry and exit events of each call of a capture, by the call's row."""
    events_of: dict[int, list[int]] = {}
    for event, stamp in enumerate(capture.stamps):
        row = row_of.get((capture.thread, stamp))
        if row is not None:
            events_of.setdefault(row, []).append(event)
    return {row: events for row, events in events_of.items() if len(events) == 2}


def _open_call(edges: pd.DataFrame, thread: int, stamps: int) -> int | None:
    """Return the row of the innermost call of a thread that was open after a number of its stamps; None for none."""
    is_open = (edges["thread"] == thread) & (edges["begin"] < stamps) & (edges["end"] >= stamps)
    rows = np.flatnonzero(is_open.to_numpy())
    return int(rows[edges["begin"].to_numpy()[rows].argmax()]) if len(rows) else None


def _latest_start(calls: pd.DataFrame, edges: pd.DataFrame, thread: int, stamps: int) -> float:
    """Return the host start of the latest call that a thread had begun before a number of its stamps."""
    begun = (edges["thread"] == thread) & (edges["begin"] < stamps)
    return float(calls["host_start_ns"].to_numpy(dtype=float, na_value=-np.inf)[begun.to_numpy()].max())


def _renumbered(whole: pd.DataFrame) -> pd.DataFrame:
    """Return calls in the order of the column `order`, which goes, and numbered so."""
    whole = whole.iloc[np.lexsort((whole["call"], whole.pop("order").to_numpy(dtype=float, na_value=np.inf)))]
    number = pd.Series(range(len(whole)), index=whole["call"].to_numpy())
    parents = whole["parent"].map(number).astype("Int64")
    return calls_frame(whole.assign(call=range(len(whole)), parent=parents).reset_index(drop=True))


def _as_captured(calls: pd.DataFrame, rows: Sequence[int]) -> pd.DataFrame:
    """Return the calls with those in these rows moved to the phase `capture`."""
    captured = np.isin(np.arange(len(calls)), rows)
    phase = calls["phase"].astype(object).mask(captured, "capture")
    moved: pd.DataFrame = calls.assign(
        phase=phase, frame=calls["frame"].mask(captured), step=calls["step"].mask(captured)
    )
    return moved
