"""Flow of a run of which some frames were followed: their operations, and a map from the other frames to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from talkerviz.recorder.dataflow.builder import INPUT, FlowBuilder
from talkerviz.recorder.dataflow.followed_frames import FollowedFrames, Frame, SteadyState
from talkerviz.trace.event_log import Mark
from talkerviz.trace.flow import Flow, between, edges_frame, frames_frame, rows_of_ops


@dataclass(frozen=True)
class _Repeat:
    """Repetition of a steady state by a frame: its second frame's operations, except possibly the last.

    Attributes:
        steady: the steady state.
        rows: number of the second frame's first operations that the frame has.
        tail: the first of the frame's own operations after those; None for none.
    """

    steady: SteadyState
    rows: int
    tail: int | None = None


class RepeatedFrames:
    """Builds a `Flow` in which frames that were not followed repeat those that were.

    Args:
        builder: the operations of the followed frames.
        frames: all frames.
        edges: begin edge of each call of the watched thread.
        calls: the calls table of the watched thread.
    """

    def __init__(self, builder: FlowBuilder, frames: FollowedFrames, edges: np.ndarray, calls: pd.DataFrame) -> None:
        self._builder = builder
        self._known = frames
        self._frames = frames.frames
        starts = np.array([frame.edge for frame in self._frames], dtype=np.int64)
        self._call = np.append(np.searchsorted(edges, starts), len(edges))  # first call of each frame, and the end
        module, depth = calls["path"].cat.codes.to_numpy(), calls["depth"].to_numpy()
        self._call_kinds = np.stack([module, depth], axis=1)
        _, kind, call = builder.operations(0, len(builder))
        order = builder.order()
        self._is_input, self._edge, self._order = (kind == INPUT)[order], call[order], order
        self._straight: dict[tuple[int, int], bool] = {}

    def flow(self, begun: np.ndarray, marks: Sequence[Mark]) -> Flow:
        """Build the flow; its calls are numbered in the order of the watched thread.

        Args:
            begun: for each edge, the number of the call that begins there; the last element, for -1, is no call.
            marks: the recording's marks.
        """
        whole = self._builder.flow(begun, marks)
        if all(frame.followed for frame in self._frames):
            return whole
        self._after = whole.ops["after"].to_numpy()
        self._unnamed = (whole.ops["name"] == "input").to_numpy()
        self._ends = np.stack([whole.edges["source"].to_numpy(), whole.edges["target"].to_numpy()]).astype(np.int64)
        repeats = [self._repeat_of(frame) for frame in self._frames]
        gathered, explained = self._gathered(repeats)
        # The operations to keep: of a repeat its own at the rows of the steady state's, then those after them.
        rows: list[np.ndarray] = []
        tails: list[np.ndarray] = []
        begins: list[int] = []
        row_of = np.full(len(whole.ops), -1)
        count = 0
        for frame, repeat in zip(self._frames, repeats, strict=True):
            here, tail = np.arange(frame.first, frame.last), np.arange(0)
            if repeat is not None:
                if repeat.tail is not None:
                    tail = np.arange(repeat.tail, frame.last)
                here = self._aligned(frame, repeat) if frame.followed else here[:0]
            if repeat is not None or not frame.complete:
                # Tensors from frames that were not followed look like external inputs.
                tail = tail[~self._is_input[tail]]
                here = here if repeat is not None else here[~self._is_input[here]]
            here, tail = here[~np.isin(here, explained)], tail[~np.isin(tail, explained)]
            for part in (here, tail):
                own = (part >= frame.first) & (part < frame.last)
                row_of[part[own]] = count + np.flatnonzero(own)
                count += len(part)
            begins.append(count - len(here) - len(tail))
            rows.append(here)
            tails.append(tail)
        kept = np.concatenate([part for parts in zip(rows, tails, strict=True) for part in parts])
        source, target, state, back = self._edges(whole, row_of, repeats, gathered)
        self._shapes = [whole.ops[name].to_numpy()[kept] for name in ("inputs", "outputs")]
        table = self._table(marks, repeats, begins, [len(part) for part in rows], [len(part) for part in tails])
        return Flow(rows_of_ops(whole.ops, kept), edges_frame(source, target, state, back), table)

    def _repeat_of(self, frame: Frame) -> _Repeat | None:
        """Return what a frame repeats; None for a frame that is kept as followed, and if no steady state is known."""
        of_kind = self._known.steady_states.get(frame.key, [])
        if not frame.followed:
            return self._repeat_unfollowed(frame, of_kind)
        if any(frame in (steady.first, steady.second) for steady in of_kind):
            return None
        # Reads in the next frame may link operations of this one.
        closed = frame.number + 1 == len(self._frames) or self._frames[frame.number + 1].followed
        if frame.complete and closed:
            return None
        candidates = (self._repeat_followed(frame, steady) for steady in _latest_first(of_kind, frame))
        return next(filter(None, candidates), None)

    def _repeat_unfollowed(self, frame: Frame, of_kind: Sequence[SteadyState]) -> _Repeat | None:
        if of_kind:
            steady = _latest_first(of_kind, frame)[0]
            common = self._common_calls(frame, steady.second)
        else:
            of_loop = [
                steady for key, known in self._known.steady_states.items() if key[:2] == frame.loop for steady in known
            ]
            if not of_loop:
                return None
            lengths = [self._common_calls(frame, steady.second) for steady in of_loop]
            best = int(np.argmax(lengths))
            steady, common = of_loop[best], lengths[best]
        rows = self._rows_until(steady.second, common)
        following = self._frames[frame.number + 1].loop if frame.number + 1 < len(self._frames) else None
        if following != self._frames[steady.second.number + 1].loop:
            rows = self._without_preparation(steady.second, rows)
        return _Repeat(steady, rows)

    def _repeat_followed(self, frame: Frame, steady: SteadyState) -> _Repeat | None:
        """Return how a followed frame repeats a steady state; None if it does not.

        The last frame of a loop lacks the operations that prepare the next one, and may have others instead.
        """
        second = steady.second
        ops, core = [], []
        for each in (frame, second):
            name, kind, call = self._builder.operations(each.first, each.last)
            ops.append(np.stack([name, kind, np.maximum(call - each.edge, -1)])[:, kind != INPUT])
            core.append(np.flatnonzero(~self._is_input[each.first : each.last]))
        length = min(columns.shape[1] for columns in ops)
        differs = (ops[0][:, :length] != ops[1][:, :length]).any(axis=0)
        common = int(differs.argmax()) if differs.any() else length
        if not common or any((columns[2, common:] >= 0).any() for columns in ops):
            return None
        if not self._known.reads_the_same(frame, steady, common):
            return None
        rows = second.last - second.first if common == len(core[1]) else int(core[1][common - 1]) + 1
        return _Repeat(steady, rows, None if common == len(core[0]) else frame.first + int(core[0][common]))

    def _without_preparation(self, frame: Frame, rows: int) -> int:
        """Return the number of a frame's first operations without those at the end that prepare the next frame.

        Preparing operations run outside of calls, on nothing that the frame's calls produced.
        """
        inside = self._edge[frame.first : frame.first + rows] >= frame.edge
        from_calls = inside.copy()
        for source, target in self._links_inside(frame, rows):
            from_calls[target] |= from_calls[source]
        kept = np.flatnonzero(from_calls)
        return int(kept[-1]) + 1 if len(kept) else rows

    def _links_inside(self, frame: Frame, rows: int) -> list[tuple[int, int]]:
        ends = self._ends - frame.first
        here = (ends >= 0).all(axis=0) & (ends < rows).all(axis=0)
        return [(a, b) for a, b in ends[:, here].T.tolist()]

    def _common_calls(self, frame: Frame, other: Frame) -> int:
        """Return the number of calls that two frames have in common from their beginning."""
        calls = [self._call_kinds[self._call[f.number] : self._call[f.number + 1]] for f in (frame, other)]
        length = min(map(len, calls))
        differs = (calls[0][:length] != calls[1][:length]).any(axis=1)
        return int(differs.argmax()) if differs.any() else length

    def _rows_until(self, frame: Frame, calls: int) -> int:
        """Return the number of a frame's operations up to the end of its first `calls` calls."""
        first = int(self._call[frame.number])
        if calls == self._call[frame.number + 1] - first:
            return frame.last - frame.first
        rows = int((self._after[frame.first : frame.last] < first + calls).cumprod().sum())
        # Operations after the last call, outside of calls, may be those that lead to the next call.
        while rows and self._edge[frame.first + rows - 1] < frame.edge:
            rows -= 1
        return rows

    def _aligned(self, frame: Frame, repeat: _Repeat) -> np.ndarray:
        """Return the steady state's operations, each replaced by the frame's own where the frame has it."""
        second = repeat.steady.second
        rows = np.arange(second.first, second.last)
        own = np.flatnonzero(~self._is_input[frame.first : repeat.tail or frame.last]) + frame.first
        core = np.flatnonzero(~self._is_input[second.first : second.last])
        rows[core[: len(own)]] = own
        return rows

    def _edges(
        self, whole: Flow, row_of: np.ndarray, repeats: Sequence[_Repeat | None], gathered: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the flow's edges: source rows, target rows, `state`, and number of frames that the source lies back.

        Args:
            whole: the flow of the followed frames.
            row_of: row of each operation in the table of kept ones; -1 for none.
            repeats: what each frame repeats.
            gathered: further edges, see `_gathered`.
        """
        source, target, state = (whole.edges[name].to_numpy() for name in ("source", "target", "state"))
        back = np.zeros(len(source), dtype=np.int64)
        ends = {(a, b): row for row, (a, b) in enumerate(zip(source.tolist(), target.tolist(), strict=True))}
        to = np.empty(len(self._order), dtype=np.int64)
        to[self._order] = np.arange(len(self._order))
        steady_states = {id(repeat.steady): repeat.steady for repeat in repeats if repeat is not None}
        for steady in steady_states.values():
            for (a, b), frames in (self._known.links_back(steady.first, steady.second) or {}).items():
                back[ends[int(to[a]), int(to[b])]] = frames
        # The sources of a frame's operations are complete only in frames that are kept as followed.
        complete = np.ones(len(row_of), dtype=bool)
        for frame, repeat in zip(self._frames, repeats, strict=True):
            if repeat is not None:
                complete[frame.first : repeat.tail or frame.last] = False
        kept = complete[target] & (row_of[source] >= 0)
        columns = (row_of[source[kept]], row_of[target[kept]], state[kept], back[kept])
        further = (row_of[gathered[0]], row_of[gathered[1]], np.zeros(gathered.shape[1], dtype=bool), gathered[2])
        sources, targets, states, backs = (np.concatenate(parts) for parts in zip(columns, further, strict=True))
        return sources, targets, states, backs

    def _gathered(self, repeats: Sequence[_Repeat | None]) -> tuple[np.ndarray, np.ndarray]:
        """Find operations that read a tensor of every frame, such as a final `cat`.

        Tensors from the frames that were not followed were taken for inputs. If there is one such input for each of
        these frames, and the operation's other sources are the same operation of the other frames, each input comes
        from that operation of its frame.

        Returns:
            Links, rows `source`, `target` and number of frames that the source lies back, with `source` in the second
            frame of the steady state; and the inputs that the links replace.
        """
        links: list[tuple[int, int, int]] = []
        explained: list[int] = []
        unseen = [frame.number for frame in self._frames if not frame.followed]
        starts = np.array([frame.first for frame in self._frames])
        sources, targets = self._ends
        for frame, repeat in zip(self._frames[unseen[0] :], repeats[unseen[0] :], strict=True):
            first = frame.first if repeat is None else repeat.tail
            if not frame.followed or first is None:
                continue
            here = (targets >= first) & (targets < frame.last)
            for target in np.unique(targets[here & self._is_input[sources] & (sources >= frame.first)]).tolist():
                read = sources[targets == target]
                inputs = read[self._is_input[read] & (read >= frame.first)]
                steady_rows: dict[tuple[int, int], SteadyState] = {}
                for source in read[read < frame.first].tolist():
                    origin = self._frames[int(np.searchsorted(starts, source, side="right")) - 1]
                    if (match := self._steady_row(origin, source, repeats[origin.number])) is not None:
                        steady_rows[id(match[0]), match[1]] = match[0]
                missing = [
                    (steady.second.first + row, target, frame.number - number)
                    for (_, row), steady in steady_rows.items()
                    for number in unseen
                    if self._has(repeats[number], steady, row)
                ]
                if len(missing) == len(inputs) and not np.isin(sources[targets != target], inputs).any():
                    links += missing
                    explained += inputs.tolist()
            if frame.key not in self._known.steady_states:
                # Inputs first read inside of calls were made by unfollowed frames; arguments may be external.
                inside = np.arange(first, frame.last)
                explained += inside[self._is_input[inside] & self._unnamed[inside]].tolist()
        return np.array(links, dtype=np.int64).reshape(-1, 3).T, np.array(explained, dtype=np.int64)

    def _has(self, repeat: _Repeat | None, steady: SteadyState, row: int) -> bool:
        return repeat is not None and repeat.steady is steady and row < repeat.rows

    def _steady_row(self, frame: Frame, operation: int, repeat: _Repeat | None) -> tuple[SteadyState, int] | None:
        """Return the steady state, and the row of its second frame, that a followed frame's operation repeats."""
        if repeat is not None:
            row = np.flatnonzero(self._aligned(frame, repeat)[: repeat.rows] == operation)
            return (repeat.steady, int(row[0])) if len(row) else None
        for steady in self._known.steady_states.get(frame.key, ()):
            if frame.ops == steady.second.ops:
                return steady, operation - frame.first
        return None

    def _table(
        self,
        marks: Sequence[Mark],
        repeats: Sequence[_Repeat | None],
        begins: Sequence[int],
        rows: Sequence[int],
        tails: Sequence[int],
    ) -> pd.DataFrame:
        """Return the rows of each frame's operations, see `trace.flow.FRAMES`.

        Args:
            marks: the recording's marks.
            repeats: what each frame repeats.
            begins: row of each frame's first operation.
            rows: number of each frame's own rows, those after the repeated ones excluded.
            tails: number of each frame's own rows after the repeated ones.
        """
        sized: dict[int, list[int]] = {}  # id of each steady state -> frames of it with known sizes
        for frame, repeat in zip(self._frames, repeats, strict=True):
            if frame.followed and repeat is not None:
                sized.setdefault(id(repeat.steady), []).append(frame.number)
            elif frame.followed:
                for steady in self._known.steady_states.get(frame.key, ()):
                    if frame.ops == steady.second.ops:
                        sized.setdefault(id(steady), []).append(frame.number)
        table = []
        for frame, repeat in zip(self._frames, repeats, strict=True):
            begin, until = begins[frame.number], begins[frame.number] + rows[frame.number]
            end, low, high, ratio = until, begin, begin, 0.0
            if repeat is not None:
                second = repeat.steady.second
                begin = begins[second.number]
                end = begin + repeat.rows
                a, b = self._around(sized[id(repeat.steady)], frame.number, begins, second.last - second.first)
                low, high, ratio = begins[a], begins[b], (frame.number - a) / (b - a) if a != b else 0.0
                calls = self._call[frame.number] - self._call[second.number]
            else:
                calls = 0
            number = marks[frame.mark].frame
            table.append((False, begins[frame.number], until, begin, end, low, high, ratio, number, int(calls)))
            if tail := tails[frame.number]:
                table.append((True, until, until + tail, until, until + tail, until, until, 0.0, number, 0))
        return frames_frame(table)

    def _around(self, known: Sequence[int], number: int, begins: Sequence[int], rows: int) -> tuple[int, int]:
        """Return two frames to interpolate a frame's sizes from, or to extrapolate if sizes are linear there.

        Twice the same frame if there are no such two.

        Args:
            known: frames with known sizes, in order.
            number: the frame in question.
            begins: row of each frame's first operation.
            rows: number of operations of each.
        """
        if number in known:
            return number, number
        after = [frame for frame in known if frame > number]
        before = [frame for frame in known if frame < number]
        if after and before:
            return before[-1], after[0]
        nearest, *others = after if after else before[::-1]
        beside = next((frame for frame in others if abs(frame - nearest) == 1), None)
        if beside is None:
            return nearest, nearest
        key = nearest, beside
        if key not in self._straight:
            third = next((frame for frame in others if frame != beside), None)
            self._straight[key] = third is not None and self._is_straight((nearest, beside, third), begins, rows)
        return key if self._straight[key] else (nearest, nearest)

    def _is_straight(self, frames: tuple[int, int, int], begins: Sequence[int], rows: int) -> bool:
        """Return whether all tensor sizes are linear in the frame number over three frames."""
        first, second, third = frames
        ratio = (third - first) / (second - first)
        for lists in self._shapes:
            for row in range(rows):
                a, b, c = (lists[begins[frame] + row] for frame in frames)
                if a is not b and [tensor.shape for tensor in between(a, b, ratio)] != [tensor.shape for tensor in c]:
                    return False
        return True


def _latest_first(steady_states: Sequence[SteadyState], frame: Frame) -> list[SteadyState]:
    """Order steady states: those reached before a frame, latest first, then the others."""
    before = [steady for steady in steady_states if steady.second.number < frame.number]
    return [*before[::-1], *steady_states[len(before) :]]
