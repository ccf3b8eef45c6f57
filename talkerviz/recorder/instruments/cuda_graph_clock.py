"""Device times inside replays of CUDA graphs.

Modules are called while a graph is captured, and never again. So each edge of a call leaves an event inside the graph
(`torch.cuda.Event(external=True)`, an event-record node), which every replay passes anew. It is read before the next
replay of that graph, which waits until the one before is over, and after the run.

Nothing runs while a graph is captured: those calls are the phase `capture`, of no frame. A replay's are what they were
captured as, a frame further each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import pandas as pd
import torch

from talkerviz.recorder.instruments.cuda_clock import CudaClock, device_columns
from talkerviz.recorder.method_patch import patch_method
from talkerviz.trace.calls_table import calls_frame
from talkerviz.trace.event_log import Mark


@dataclass
class _Replay:
    number: int  # among its graph's
    mark: int
    device: int
    anchor: Any  # an event just before the replay
    host_ns: int
    over: Any  # and one just after it
    times: np.ndarray | None = None  # nanoseconds from the anchor to each captured event


@dataclass
class _Graph:
    graph: Any  # kept, so that no other gets its identity
    edges: list[tuple[int, int]]  # thread and edge of each event
    events: list[Any]
    mark: int  # that held when it was captured
    begun: int = 0  # replays
    waiting: _Replay | None = None


class GraphReplays:
    """Follows captures and replays, and adds a replay's calls to a trace.

    Args:
        clock: the clock whose stamps fall into captures.
        mark: gives the number of the mark that holds now.
        owner: the class of graphs.
    """

    def __init__(self, clock: CudaClock, mark: Callable[[], int], owner: type = torch.cuda.CUDAGraph) -> None:
        self._clock = clock
        self._mark = mark
        self._owner = owner
        self._graphs: dict[int, _Graph] = {}
        self._replays: list[tuple[_Graph, _Replay]] = []

    def attach(self, undo: list[Callable[[], None]]) -> None:
        """Watch every graph; what undoes it is added to the list."""
        patch_method(self._owner, "capture_begin", self._make_begin, undo)
        patch_method(self._owner, "capture_end", self._make_end, undo)
        patch_method(self._owner, "replay", self._make_replay, undo)

    def _make_begin(self, below: Callable[..., Any]) -> Callable[..., Any]:
        def capture_begin(graph: Any, *args: Any, **kwargs: Any) -> Any:
            self._clock.captured = []
            return below(graph, *args, **kwargs)

        return capture_begin

    def _make_end(self, below: Callable[..., Any]) -> Callable[..., Any]:
        def capture_end(graph: Any) -> Any:
            result = below(graph)
            captured, self._clock.captured = self._clock.captured, []
            if captured:
                edges = [(thread, edge) for thread, edge, _ in captured]
                self._graphs[id(graph)] = _Graph(graph, edges, [event for _, _, event in captured], self._mark())
            return result

        return capture_end

    def _make_replay(self, below: Callable[..., Any]) -> Callable[..., Any]:
        def replay(graph: Any) -> Any:
            known = self._graphs.get(id(graph))
            if known is None:
                return below(graph)
            self._read(known)
            cuda = self._clock.cuda
            anchor, over = cuda.event(False), cuda.event(False)
            anchor.record()
            begun = _Replay(known.begun, self._mark(), cuda.device(), anchor, perf_counter_ns(), over)
            self._clock.know(begun.device)
            result = below(graph)
            over.record()
            known.waiting = begun
            known.begun += 1
            return result

        return replay

    def _read(self, graph: _Graph) -> None:
        replay, graph.waiting = graph.waiting, None
        if replay is None:
            return
        replay.over.synchronize()
        replay.times = np.array([round(replay.anchor.elapsed_time(event) * 1e6) for event in graph.events])
        replay.host_ns = self._clock.line(replay.device).time_of(replay.anchor)
        self._replays.append((graph, replay))

    def read_last(self) -> None:
        """After the run."""
        for graph in self._graphs.values():
            self._read(graph)

    def with_replays(
        self, calls: pd.DataFrame, edges: pd.DataFrame, marks: Sequence[Mark], origin_ns: int
    ) -> pd.DataFrame:
        """The calls, and those of every replay among them, in the order in which they began.

        A replayed call has device times and no host times. Where another phase or frame has begun since the capture, it
        has that one's.
        """
        if not self._graphs:
            return calls
        place = {
            (int(thread), int(edge)): row
            for name in ("begin", "end")
            for row, (thread, edge) in enumerate(zip(edges["thread"], edges[name], strict=True))
        }
        events_of = {id(graph): _events_by_row(graph.edges, place) for graph in self._graphs.values()}
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
            parent = [new_number.get(one) for one in again["parent"]]
            if replay.mark == graph.mark:
                frames = again["frame"]
                again["frame"] = frames + replay.number * (frames.max() - frames.min() + 1)
            else:
                mark = marks[replay.mark]
                again["phase"] = mark.phase
                again["frame"], again["step"] = (
                    pd.array([each] * len(rows), dtype="Int64") for each in (mark.frame, mark.step)
                )
            begin = replay.times[[event_of[row][0] for row in rows]]
            end = replay.times[[event_of[row][1] for row in rows]]
            base = int(self._clock.line(replay.device).corrected(np.array([replay.host_ns]))[0]) - origin_ns
            again = again.assign(
                call=list(new_number.values()),
                parent=pd.array(parent, dtype="Int64"),
                depth=again["depth"] - again["depth"].min(),
                run=marks[replay.mark].run,
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

    def facts(self) -> dict[str, Any]:
        """How many replays were timed."""
        return {"graph_replays": len(self._replays)} if self._graphs else {}


def _events_by_row(edges: Sequence[tuple[int, int]], place: Mapping[tuple[int, int], int]) -> dict[int, list[int]]:
    """The events of both edges of each call of a graph."""
    found: dict[int, list[int]] = {}
    for event, edge in enumerate(edges):
        if edge in place:
            found.setdefault(place[edge], []).append(event)
    return {row: events for row, events in found.items() if len(events) == 2}


def _as_captured(calls: pd.DataFrame, rows: Sequence[int]) -> pd.DataFrame:
    """The calls, those in these rows as of the phase `capture`."""
    there = np.isin(np.arange(len(calls)), rows)
    phase = calls["phase"].astype(object).mask(there, "capture")
    marked: pd.DataFrame = calls.assign(phase=phase, frame=calls["frame"].mask(there), step=calls["step"].mask(there))
    return marked
