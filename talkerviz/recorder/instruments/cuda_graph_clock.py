"""CUDA graph clock: device times of calls inside replays of CUDA graphs.

Modules are called while a graph is captured, and not in a replay. So each entry and exit of a call leaves an event
inside the graph (`torch.cuda.Event(external=True)`, an event-record node), which every replay passes anew. It is read
before the next replay of that graph, which waits until the one before is over, and after the run.

Nothing runs while a graph is captured: those calls have the phase `capture`, and no frame. A replay's calls have the
phase that they were captured in, a frame further each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import pandas as pd
import torch

from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo
from talkerviz.recorder.instruments.cuda_clock import CudaClock, device_columns
from talkerviz.recorder.method_patch import patch_method
from talkerviz.trace.calls_table import calls_frame


@dataclass
class _Replay:
    number: int  # among the replays of its graph
    mark: int  # number of the mark at the replay
    device: int
    anchor: Any  # an event just before the replay
    host_ns: int
    over: Any  # an event just after the replay
    times: np.ndarray | None = None  # nanoseconds from the anchor to each captured event


@dataclass
class _Graph:
    graph: Any  # kept alive, so that no other graph gets its `id`
    stamps: list[tuple[int, int]]  # thread and index of the stamp that left each event
    events: list[Any]
    mark: int  # number of the mark at the capture
    replays: int = 0
    pending: _Replay | None = None  # the last replay, until its events are read


class CudaGraphClock(Instrument):
    """Instrument that follows captures and replays, and adds a replay's calls to the trace.

    Args:
        run: the recording.
        clock: the clock whose stamps are captured.
        owner: the class of graphs.
    """

    def __init__(self, run: RunContext, clock: CudaClock, owner: type = torch.cuda.CUDAGraph) -> None:
        self._clock = clock
        self._origin_ns = run.origin_ns
        self._marks = run.marks
        self._mark_number = run.mark_number
        self._owner = owner
        self._graphs: dict[int, _Graph] = {}
        self._replays: list[tuple[_Graph, _Replay]] = []

    def attach(self, undo: Undo) -> None:
        """Patch the methods of graphs that capture and replay."""
        patch_method(self._owner, "capture_begin", self._wrap_begin, undo)
        patch_method(self._owner, "capture_end", self._wrap_end, undo)
        patch_method(self._owner, "replay", self._wrap_replay, undo)

    def _wrap_begin(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_begin(graph: Any, *args: Any, **kwargs: Any) -> Any:
            self._clock.captured = []
            return original(graph, *args, **kwargs)

        return capture_begin

    def _wrap_end(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_end(graph: Any) -> Any:
            result = original(graph)
            captured, self._clock.captured = self._clock.captured, []
            if captured:
                stamps = [(thread, stamp) for thread, stamp, _ in captured]
                events = [event for _, _, event in captured]
                self._graphs[id(graph)] = _Graph(graph, stamps, events, self._mark_number())
            return result

        return capture_end

    def _wrap_replay(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def replay(graph: Any) -> Any:
            known = self._graphs.get(id(graph))
            if known is None:
                return original(graph)
            self._read(known)
            cuda = self._clock.cuda
            anchor, over = cuda.event(False), cuda.event(False)
            anchor.record()
            begun = _Replay(known.replays, self._mark_number(), cuda.device(), anchor, perf_counter_ns(), over)
            self._clock.add_device(begun.device)
            result = original(graph)
            over.record()
            known.pending = begun
            known.replays += 1
            return result

        return replay

    def _read(self, graph: _Graph) -> None:
        replay, graph.pending = graph.pending, None
        if replay is None:
            return
        replay.over.synchronize()
        replay.times = np.array([round(replay.anchor.elapsed_time(event) * 1e6) for event in graph.events])
        replay.host_ns = self._clock.line(replay.device).time_of(replay.anchor)
        self._replays.append((graph, replay))

    def stop(self) -> None:
        """Read the last replay of each graph, if the clock could be read."""
        if self._clock.aligned:
            for graph in self._graphs.values():
                self._read(graph)

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return the number of timed replays as a fact."""
        facts = {"graph_replays": len(self._replays)} if self._graphs and self._clock.aligned else {}
        return Readings(facts=facts)

    def add_calls(self, calls: pd.DataFrame, edges: pd.DataFrame) -> pd.DataFrame:
        """Return the calls and those of every replay, in the order in which they began.

        A replayed call has device times and no host times. If another phase or frame has begun since the capture, the
        call is in that one.
        """
        if not self._graphs or not self._clock.aligned:
            return calls
        row_of = {
            (int(thread), int(stamp)): row
            for name in ("begin", "end")
            for row, (thread, stamp) in enumerate(zip(edges["thread"], edges[name], strict=True))
        }
        events_of = {id(graph): _events_by_row(graph.stamps, row_of) for graph in self._graphs.values()}
        added = [_as_captured(calls, sorted(row for events in events_of.values() for row in events))]
        number = len(calls)
        for graph, replay in self._replays:
            assert replay.times is not None
            event_of = events_of[id(graph)]
            rows = sorted(event_of)
            if not rows:
                continue
            again = calls.iloc[rows].reset_index(drop=True)
            new_number = dict(zip(calls["call"].iloc[rows], range(number, number + len(rows)), strict=True))
            parents = [new_number.get(parent) for parent in again["parent"]]
            if replay.mark == graph.mark:
                frames = again["frame"]
                again["frame"] = frames + replay.number * (frames.max() - frames.min() + 1)
            else:
                mark = self._marks[replay.mark]
                again["phase"] = mark.phase
                again["frame"], again["step"] = (
                    pd.array([number] * len(rows), dtype="Int64") for number in (mark.frame, mark.step)
                )
            begin = replay.times[[event_of[row][0] for row in rows]]
            end = replay.times[[event_of[row][1] for row in rows]]
            base = int(self._clock.line(replay.device).corrected(np.array([replay.host_ns]))[0]) - self._origin_ns
            again = again.assign(
                call=list(new_number.values()),
                parent=pd.array(parents, dtype="Int64"),
                depth=again["depth"] - again["depth"].min(),
                run=self._marks[replay.mark].run,
                host_start_ns=pd.NA,
                host_ns=pd.NA,
                host_self_ns=pd.NA,
                error=None,
            )
            local = again.assign(parent=again["parent"] - number)
            times = device_columns(local, begin + base, end - begin, np.ones(len(rows), dtype=bool))
            added.append(again.assign(**times))
            number += len(rows)
        whole = pd.concat([part.astype({"phase": object, "path": object, "class": object}) for part in added])
        start = whole["host_start_ns"].fillna(whole["device_start_ns"])
        whole = whole.iloc[np.lexsort((whole["call"], start.to_numpy(dtype=float, na_value=np.inf)))]
        renumbered = pd.Series(range(len(whole)), index=whole["call"].to_numpy())
        parents = whole["parent"].map(renumbered).astype("Int64")
        return calls_frame(whole.assign(call=range(len(whole)), parent=parents).reset_index(drop=True))


def _events_by_row(stamps: Sequence[tuple[int, int]], row_of: Mapping[tuple[int, int], int]) -> dict[int, list[int]]:
    """Return the indices of the entry and exit events of each call of a graph, by the call's row."""
    events_of: dict[int, list[int]] = {}
    for event, stamp in enumerate(stamps):
        if stamp in row_of:
            events_of.setdefault(row_of[stamp], []).append(event)
    return {row: events for row, events in events_of.items() if len(events) == 2}


def _as_captured(calls: pd.DataFrame, rows: Sequence[int]) -> pd.DataFrame:
    """Return the calls with those in these rows moved to the phase `capture`."""
    captured = np.isin(np.arange(len(calls)), rows)
    phase = calls["phase"].astype(object).mask(captured, "capture")
    moved: pd.DataFrame = calls.assign(
        phase=phase, frame=calls["frame"].mask(captured), step=calls["step"].mask(captured)
    )
    return moved
