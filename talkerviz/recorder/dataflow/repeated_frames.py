"""The flow of a run of which some frames were followed: their operations, and which frames are made like them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from talkerviz.recorder.dataflow.builder import INPUT, FlowNotes
from talkerviz.recorder.dataflow.followed_frames import FollowedFrames, Frame, Settled
from talkerviz.trace.event_log import Mark
from talkerviz.trace.flow import Flow, between, edges_frame, frames_frame, rows_of_ops


@dataclass(frozen=True)
class _Made:
    """How a frame is made: like the second of a settled pair, but for its last calls."""

    like: Settled
    rows: int  # the operations of it that there are
    tail: int | None = None  # the first of the frame's own that come after those


class FlowOfFrames:
    """Makes a `Flow` of notes.

    Args:
        notes: the operations of the frames that were followed.
        frames: all frames.
        edges: at which edge each call of the watched thread began.
        calls: those calls.
    """

    def __init__(self, notes: FlowNotes, frames: FollowedFrames, edges: np.ndarray, calls: pd.DataFrame) -> None:
        self._notes = notes
        self._known = frames
        self._frames = frames.frames
        starts = np.array([frame.edge for frame in self._frames], dtype=np.int64)
        self._call = np.append(np.searchsorted(edges, starts), len(edges))  # the first of each frame, and the end
        module, depth = calls["path"].cat.codes.to_numpy(), calls["depth"].to_numpy()
        self._made_of = np.stack([module, depth], axis=1)
        _, kind, call = notes.operations(0, len(notes))
        order = notes.order()
        self._is_input, self._edge, self._order = (kind == INPUT)[order], call[order], order
        self._straight: dict[tuple[int, int], bool] = {}

    def flow(self, begun: np.ndarray, marks: Sequence[Mark]) -> Flow:
        """The flow; its calls are numbered as the watched thread made them.

        Args:
            begun: edges -> the calls that begin there; its last place is that of -1, for no call.
            marks: the recording's.
        """
        whole = self._notes.flow(begun, marks)
        if all(frame.followed for frame in self._frames):
            return whole
        self._after = whole.ops["after"].to_numpy()
        self._unnamed = (whole.ops["name"] == "input").to_numpy()
        self._ends = np.stack([whole.edges["source"].to_numpy(), whole.edges["target"].to_numpy()]).astype(np.int64)
        made = [self._made(frame) for frame in self._frames]
        gathered, explained = self._gathered(made)
        # The operations that are kept: of a frame that is made like another, those at the places of that one's, and
        # what comes after them.
        rows: list[np.ndarray] = []
        tails: list[np.ndarray] = []
        at: list[int] = []
        place = np.full(len(whole.ops), -1)
        count = 0
        for frame, like in zip(self._frames, made, strict=True):
            here, tail = np.arange(frame.first, frame.last), np.arange(0)
            if like is not None:
                if like.tail is not None:
                    tail = np.arange(like.tail, frame.last)
                here = self._aligned(frame, like) if frame.followed else here[:0]
            if like is not None or not frame.complete:
                # What comes from frames that were not followed looks as if it came from outside.
                tail = tail[~self._is_input[tail]]
                here = here if like is not None else here[~self._is_input[here]]
            here, tail = here[~np.isin(here, explained)], tail[~np.isin(tail, explained)]
            for part in (here, tail):
                own = (part >= frame.first) & (part < frame.last)
                place[part[own]] = count + np.flatnonzero(own)
                count += len(part)
            at.append(count - len(here) - len(tail))
            rows.append(here)
            tails.append(tail)
        kept = np.concatenate([part for parts in zip(rows, tails, strict=True) for part in parts])
        source, target, state, back = self._edges(whole, place, made, gathered)
        self._shapes = [whole.ops[name].to_numpy()[kept] for name in ("inputs", "outputs")]
        table = self._table(marks, made, at, [len(part) for part in rows], [len(part) for part in tails])
        return Flow(rows_of_ops(whole.ops, kept), edges_frame(source, target, state, back), table)

    def _made(self, frame: Frame) -> _Made | None:
        """What a frame is made like; None for one that is kept as it was seen, and where nothing is known."""
        of_kind = self._known.settled.get(frame.key, [])
        if not frame.followed:
            return self._made_unseen(frame, of_kind)
        if any(frame in (one.first, one.second) for one in of_kind):
            return None
        # What the next frame reads may link operations of this one.
        closed = frame.number + 1 == len(self._frames) or self._frames[frame.number + 1].followed
        if frame.complete and closed:
            return None
        return next(filter(None, (self._in_common(frame, one) for one in _latest_first(of_kind, frame))), None)

    def _made_unseen(self, frame: Frame, of_kind: Sequence[Settled]) -> _Made | None:
        if of_kind:
            like = _latest_first(of_kind, frame)[0]
            common = self._common_calls(frame, like.second)
        else:
            of_loop = [one for key, known in self._known.settled.items() if key[:2] == frame.loop for one in known]
            if not of_loop:
                return None
            lengths = [self._common_calls(frame, one.second) for one in of_loop]
            best = int(np.argmax(lengths))
            like, common = of_loop[best], lengths[best]
        rows = self._rows_until(like.second, common)
        following = self._frames[frame.number + 1].loop if frame.number + 1 < len(self._frames) else None
        if following != self._frames[like.second.number + 1].loop:
            rows = self._without_preparation(like.second, rows)
        return _Made(like, rows)

    def _in_common(self, frame: Frame, settled: Settled) -> _Made | None:
        """How a frame that was followed is made like others; None if it is not.

        The last of a loop lacks the operations that prepare the next, and may have others in their place.
        """
        like = settled.second
        seen, places = [], []
        for one in (frame, like):
            name, kind, call = self._notes.operations(one.first, one.last)
            seen.append(np.stack([name, kind, np.maximum(call - one.edge, -1)])[:, kind != INPUT])
            places.append(np.flatnonzero(~self._is_input[one.first : one.last]))
        length = min(one.shape[1] for one in seen)
        differs = (seen[0][:, :length] != seen[1][:, :length]).any(axis=0)
        common = int(differs.argmax()) if differs.any() else length
        if not common or any((one[2, common:] >= 0).any() for one in seen):
            return None
        if not self._known.reads_the_same(frame, settled, common):
            return None
        rows = like.last - like.first if common == len(places[1]) else int(places[1][common - 1]) + 1
        return _Made(settled, rows, None if common == len(places[0]) else frame.first + int(places[0][common]))

    def _without_preparation(self, frame: Frame, rows: int) -> int:
        """How many of the first operations of a frame there are without those at the end that prepare the next.

        Those ran outside of calls, on nothing that came from the frame's calls.
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

    def _common_calls(self, one: Frame, two: Frame) -> int:
        """How many calls two frames have in common from their beginning."""
        calls = [self._made_of[self._call[f.number] : self._call[f.number + 1]] for f in (one, two)]
        length = min(map(len, calls))
        differs = (calls[0][:length] != calls[1][:length]).any(axis=1)
        return int(differs.argmax()) if differs.any() else length

    def _rows_until(self, frame: Frame, calls: int) -> int:
        """How many of a frame's operations there are where it has only some of its calls."""
        first = int(self._call[frame.number])
        if calls == self._call[frame.number + 1] - first:
            return frame.last - frame.first
        rows = int((self._after[frame.first : frame.last] < first + calls).cumprod().sum())
        # What follows the last call outside of it may be what leads to the next.
        while rows and self._edge[frame.first + rows - 1] < frame.edge:
            rows -= 1
        return rows

    def _aligned(self, frame: Frame, made: _Made) -> np.ndarray:
        """For each operation of what a frame is made like, the frame's own; the other's where there is none."""
        like = made.like.second
        rows = np.arange(like.first, like.last)
        own = np.flatnonzero(~self._is_input[frame.first : made.tail or frame.last]) + frame.first
        core = np.flatnonzero(~self._is_input[like.first : like.last])
        rows[core[: len(own)]] = own
        return rows

    def _edges(
        self, whole: Flow, place: np.ndarray, made: Sequence[_Made | None], gathered: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        source, target, state = (whole.edges[name].to_numpy() for name in ("source", "target", "state"))
        back = np.zeros(len(source), dtype=np.int64)
        ends = {(a, b): row for row, (a, b) in enumerate(zip(source.tolist(), target.tolist(), strict=True))}
        to = np.empty(len(self._order), dtype=np.int64)
        to[self._order] = np.arange(len(self._order))
        likes = {id(one.like): one.like for one in made if one is not None}
        for like in likes.values():
            for (a, b), frames in (self._known.links_back(like.first, like.second) or {}).items():
                back[ends[int(to[a]), int(to[b])]] = frames
        # Where those of a frame came from is only known of frames that are kept as they were seen.
        seen = np.ones(len(place), dtype=bool)
        for frame, like_ in zip(self._frames, made, strict=True):
            if like_ is not None:
                seen[frame.first : like_.tail or frame.last] = False
        kept = seen[target] & (place[source] >= 0)
        columns = (place[source[kept]], place[target[kept]], state[kept], back[kept])
        further = (place[gathered[0]], place[gathered[1]], np.zeros(gathered.shape[1], dtype=bool), gathered[2])
        one, two, three, four = (np.concatenate(parts) for parts in zip(columns, further, strict=True))
        return one, two, three, four

    def _gathered(self, made: Sequence[_Made | None]) -> tuple[np.ndarray, np.ndarray]:
        """What operations read of every frame, as those that put together what all frames gave.

        What comes from the frames that were not followed was taken for inputs: where there is one for each of these,
        and what else the operation reads comes from one place in the others, it comes from that place in these.

        Returns:
            Links, rows `source`, `target` and how many frames `source` lies back, if it were in the frame where that
            is; and the inputs that they explain.
        """
        links: list[tuple[int, int, int]] = []
        explained: list[int] = []
        unseen = [frame.number for frame in self._frames if not frame.followed]
        starts = np.array([frame.first for frame in self._frames])
        sources, targets = self._ends
        for frame, like in zip(self._frames[unseen[0] :], made[unseen[0] :], strict=True):
            first = frame.first if like is None else like.tail
            if not frame.followed or first is None:
                continue
            here = (targets >= first) & (targets < frame.last)
            for target in np.unique(targets[here & self._is_input[sources] & (sources >= frame.first)]).tolist():
                read = sources[targets == target]
                foreign = read[self._is_input[read] & (read >= frame.first)]
                places: dict[tuple[int, int], Settled] = {}
                for source in read[read < frame.first].tolist():
                    of = self._frames[int(np.searchsorted(starts, source, side="right")) - 1]
                    if (found := self._place_in(of, source, made[of.number])) is not None:
                        places[id(found[0]), found[1]] = found[0]
                missing = [
                    (settled.second.first + row, target, frame.number - number)
                    for (_, row), settled in places.items()
                    for number in unseen
                    if self._has(made[number], settled, row)
                ]
                if len(missing) == len(foreign) and not np.isin(sources[targets != target], foreign).any():
                    links += missing
                    explained += foreign.tolist()
            if frame.key not in self._known.settled:
                # What was met inside of calls was made in the meantime; arguments may come from outside.
                inside = np.arange(first, frame.last)
                explained += inside[self._is_input[inside] & self._unnamed[inside]].tolist()
        return np.array(links, dtype=np.int64).reshape(-1, 3).T, np.array(explained, dtype=np.int64)

    def _has(self, made: _Made | None, settled: Settled, row: int) -> bool:
        return made is not None and made.like is settled and row < made.rows

    def _place_in(self, frame: Frame, operation: int, made: _Made | None) -> tuple[Settled, int] | None:
        """Which operation of a settled kind one of a frame that was followed is."""
        if made is not None:
            place = np.flatnonzero(self._aligned(frame, made)[: made.rows] == operation)
            return (made.like, int(place[0])) if len(place) else None
        for settled in self._known.settled.get(frame.key, ()):
            if frame.ops == settled.second.ops:
                return settled, operation - frame.first
        return None

    def _table(
        self,
        marks: Sequence[Mark],
        made: Sequence[_Made | None],
        at: Sequence[int],
        rows: Sequence[int],
        tails: Sequence[int],
    ) -> pd.DataFrame:
        """Where each frame's operations are, see `trace.flow.FRAMES`."""
        sized: dict[int, list[int]] = {}  # by what frames are made like, those of which sizes are known
        for frame, like in zip(self._frames, made, strict=True):
            if frame.followed and like is not None:
                sized.setdefault(id(like.like), []).append(frame.number)
            elif frame.followed:
                for one in self._known.settled.get(frame.key, ()):
                    if frame.ops == one.second.ops:
                        sized.setdefault(id(one), []).append(frame.number)
        table = []
        for frame, like in zip(self._frames, made, strict=True):
            begin, until = at[frame.number], at[frame.number] + rows[frame.number]
            end, low, high, ratio = until, begin, begin, 0.0
            if like is not None:
                second = like.like.second
                begin = at[second.number]
                end = begin + like.rows
                a, b = self._around(sized[id(like.like)], frame.number, at, second.last - second.first)
                low, high, ratio = at[a], at[b], (frame.number - a) / (b - a) if a != b else 0.0
                calls = self._call[frame.number] - self._call[second.number]
            else:
                calls = 0
            of = marks[frame.mark].frame
            table.append((False, at[frame.number], until, begin, end, low, high, ratio, of, int(calls)))
            if tail := tails[frame.number]:
                table.append((True, until, until + tail, until, until + tail, until, until, 0.0, of, 0))
        return frames_frame(table)

    def _around(self, known: Sequence[int], number: int, at: Sequence[int], rows: int) -> tuple[int, int]:
        """Two frames between which another lies, or the last two if sizes go on from them as they came to them.

        The same frame twice where they do not.

        Args:
            known: frames of which sizes are known, in order.
            number: the other frame.
            at: where each frame's operations are.
            rows: how many they are.
        """
        if number in known:
            return number, number
        after = [one for one in known if one > number]
        before = [one for one in known if one < number]
        if after and before:
            return before[-1], after[0]
        nearest, *others = after if after else before[::-1]
        beside = next((one for one in others if abs(one - nearest) == 1), None)
        if beside is None:
            return nearest, nearest
        key = nearest, beside
        if key not in self._straight:
            third = next((one for one in others if one != beside), None)
            self._straight[key] = third is not None and self._is_straight((nearest, beside, third), at, rows)
        return key if self._straight[key] else (nearest, nearest)

    def _is_straight(self, frames: tuple[int, int, int], at: Sequence[int], rows: int) -> bool:
        """Whether all sizes in three frames lie on lines."""
        one, two, three = frames
        ratio = (three - one) / (two - one)
        for lists in self._shapes:
            for row in range(rows):
                a, b, c = (lists[at[frame] + row] for frame in frames)
                if a is not b and [tensor.shape for tensor in between(a, b, ratio)] != [tensor.shape for tensor in c]:
                    return False
        return True


def _latest_first(settled: Sequence[Settled], frame: Frame) -> list[Settled]:
    """Those found before a frame from the last back, then the others."""
    before = [one for one in settled if one.second.number < frame.number]
    return [*before[::-1], *settled[len(before) :]]
