"""Which frames of a run have their tensors followed: as long as they differ, and again when one differs.

Following is several times slower than the run. Frames of a loop are made alike, so a few of them are followed, and the
`Flow` says of each other frame which of those it is made like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from talkerviz.recorder.dataflow.builder import INPUT, FlowNotes
from talkerviz.trace.event_log import Mark
from talkerviz.trace.schema import Tensors

_CHANGES: ContextVar[frozenset[int]] = ContextVar("changes", default=frozenset())
_FIRST_SAMPLE = 16  # a power of 4
_TURNS = 4  # frames of so many kinds may take turns
_FORGET_AFTER = 16  # frames of a loop: what has not come again by then was an exception

Key = tuple[str, str, int]
"""A kind of frame: its loop, see `Frame.loop`, and a hash of the modules that it called."""

_Ends = tuple[int, int, int, int, int]


@dataclass
class Frame:
    """A frame, or a stretch of the run outside of frames.

    Attributes:
        number: its place among all of the run.
        mark: the mark that it began with.
        loop: the phase of the frame before it, and its own.
        edge: the call edge at which it begins.
        first, last: its first operation, and the one after its last.
        link: its first link between operations.
        followed: whether its tensors were followed.
        complete: whether those of the frame before it were as well, so that all of its sources are known.
        calls: a hash of the modules that it called, in order.
        ops: a hash of its operations and of the links between them.
        core: the same without inputs.
    """

    number: int
    mark: int
    loop: tuple[str, str]
    edge: int
    first: int
    link: int
    followed: bool
    complete: bool
    last: int = -1
    calls: int = 0
    ops: bytes = b""
    core: bytes = b""

    @property
    def key(self) -> Key:
        """What kind of frame it is."""
        return (*self.loop, self.calls)


@dataclass(frozen=True)
class Settled:
    """Two frames of a kind that were made alike, the links from other frames included.

    Attributes:
        first, second: the two; other frames are made like the second.
    """

    first: Frame
    second: Frame


@dataclass
class _Loop:
    """Frames of one phase after another.

    Attributes:
        frames: how many began.
        waiting: kinds that are not settled -> how many frames there were when one of the kind ended last.
    """

    frames: int = 0
    waiting: dict[Key, int] = field(default_factory=dict)


@contextmanager
def following_changes_of(calls: pd.DataFrame) -> Iterator[None]:
    """Know, in recordings begun inside the block, which frames differ from those beside them in another run.

    Those are followed, and the last, whatever is seen before them.

    Args:
        calls: those of a run of the same program.
    """
    token = _CHANGES.set(_changes(calls))
    try:
        yield
    finally:
        _CHANGES.reset(token)


def _changes(calls: pd.DataFrame) -> frozenset[int]:
    own = calls[((calls["thread"] == 0) & calls["frame"].notna() & calls["host_ns"].notna()).to_numpy()]
    own = own[(own["run"] == own["run"].min()).to_numpy()]
    if own.empty:
        return frozenset()
    frame = own["frame"].to_numpy(np.int64)
    made_of = np.stack([own["path"].cat.codes, own["phase"].cat.codes, own["depth"]], axis=1)
    begins = np.concatenate([[0], np.flatnonzero(np.diff(frame)) + 1])
    parts = np.split(made_of, begins[1:])
    numbers = frame[begins].tolist()
    found = {numbers[-1]}
    for place in range(1, len(parts)):
        if not any(np.array_equal(one, parts[place]) for one in parts[max(place - _TURNS, 0) : place]):
            found.update(numbers[max(place - 1, 0) : place + 2])
    growth = _growth_of_frames(own, begins, parts)
    for place in range(1, len(growth)):
        if growth[place] and growth[place] not in growth[max(place - _TURNS, 0) : place]:
            found.update(numbers[place - 1 : place + 2])
    return frozenset(found)


def _growth_of_frames(calls: pd.DataFrame, begins: np.ndarray, parts: Sequence[np.ndarray]) -> list[bytes]:
    """For each frame, by how much the sizes of its tensors differ from the frame before, as bytes; none if in calls."""
    known: dict[tuple[object, ...], int] = {}
    steps: dict[tuple[int, int], int] = {}
    columns = [calls[name].to_numpy() for name in ("inputs", "outputs")]
    found = [b""]
    for place in range(1, len(parts)):
        if not np.array_equal(parts[place - 1], parts[place]):
            found.append(b"")
            continue
        one, two, count = begins[place - 1], begins[place], len(parts[place])
        of_frame = []
        for column in columns:
            for before, after in zip(column[one : one + count], column[two : two + count], strict=True):
                if before is after:
                    of_frame.append(-1)
                    continue
                pair = id(before), id(after)
                if pair not in steps:
                    steps[pair] = known.setdefault(_step(before, after), len(known))
                of_frame.append(steps[pair])
        found.append(np.array(of_frame, dtype=np.int64).tobytes())
    return found


def _step(before: Tensors, after: Tensors) -> tuple[object, ...]:
    if len(before) != len(after):
        return ()
    return tuple(
        tuple(b - a for a, b in zip(one.shape, two.shape, strict=False)) for one, two in zip(before, after, strict=True)
    )


class FollowedFrames:
    """The frames of a run, and which of them are followed.

    A kind of frame is settled once three in a row were made alike: in the modules that they called, in operations, and
    in where those had their tensors from. Frames are followed until all kinds that come up in their loop are settled,
    and then two of them now and then, to see how sizes grow.

    Args:
        notes: what is noted of the frames that are followed.
        marks: the marks of the recording, which adds to them.

    Attributes:
        frames: those that have begun.
        settled: the settled states of each kind, in the order in which they were found.
    """

    def __init__(self, notes: FlowNotes, marks: Sequence[Mark]) -> None:
        self._notes = notes
        self._marks = marks
        self.frames: list[Frame] = []
        self.settled: dict[Key, list[Settled]] = {}
        self._loops: dict[tuple[str, str], _Loop] = {}
        self._recent: dict[Key, list[Frame]] = {}
        self._changes = _CHANGES.get()
        self._places: dict[int, np.ndarray] = {}
        self._stale: set[Key] = set()  # kinds whose tensors from before their loop may be others by now

    def is_new(self, mark: int) -> bool:
        """Whether a mark belongs to another frame than the last one."""
        before, now = self._marks[self.frames[-1].mark], self._marks[mark]
        return (before.run, before.frame) != (now.run, now.frame)

    def begin(self, mark: int, edge: int) -> Frame:
        """Begin a frame; `followed` is whether it should be, and is to be corrected where it cannot."""
        before = self.frames[-1] if self.frames else None
        said = self._marks[mark]
        loop = (self._marks[before.mark].phase if before else "", said.phase)
        if before and before.loop != loop and before.key not in self.settled:
            self._distrust(loop)
        follow = self._is_to_follow(loop) if said.frame is not None else True
        follow |= said.run == 0 and said.frame in self._changes
        complete = before is None or before.followed
        links = self._notes.links_noted
        frame = Frame(len(self.frames), mark, loop, edge, len(self._notes), links, follow, complete)
        self.frames.append(frame)
        return frame

    def _distrust(self, loop: tuple[str, str]) -> None:
        """Settle the kinds of a loop anew: it begins again after something else, as with another prompt."""
        for key in self.settled:
            if key[:2] == loop:
                self._stale.add(key)
                self._recent.pop(key, None)
                self._loops[loop].waiting[key] = self._loops[loop].frames

    def _is_to_follow(self, loop: tuple[str, str]) -> bool:
        known = self._loops.setdefault(loop, _Loop())
        number = known.frames
        known.frames += 1
        return number == 0 or bool(known.waiting) or _is_sample(number)

    def end(self, calls: int) -> None:
        """End the frame; `calls` is a hash of the modules that it called."""
        frame = self.frames[-1]
        frame.calls, frame.last = calls, len(self._notes)
        if frame.followed:
            frame.ops, frame.core = self._hashes(frame)
        if self._marks[frame.mark].frame is None:
            return
        loop = self._loops[frame.loop]
        if self._is_settled(frame):
            loop.waiting.pop(frame.key, None)
        else:
            loop.waiting[frame.key] = loop.frames
        for key, seen in list(loop.waiting.items()):
            if loop.frames - seen > _FORGET_AFTER:
                del loop.waiting[key]

    def _is_settled(self, frame: Frame) -> bool:
        known = self.settled.get(frame.key)
        stale = frame.key in self._stale
        if not frame.followed:
            return known is not None and not stale
        if known is not None and not stale and any(self.is_alike(frame, one) for one in known):
            return True
        recent = [*self._recent.get(frame.key, ()), frame][-3:]
        self._recent[frame.key] = recent
        if len(recent) < 3 or len({one.ops for one in recent}) > 1 or not all(one.complete for one in recent):
            return False
        first, second, _ = recent
        # What reads a part of a tensor may link earlier operations: they are known once the next frame is over.
        if not all(self.frames[one.number + 1].followed for one in (first, second)):
            return False
        if self.links_back(first, second) is None:
            return False
        self.settled.setdefault(frame.key, []).append(Settled(first, second))
        self._stale.discard(frame.key)
        return True

    def is_alike(self, frame: Frame, settled: Settled) -> bool:
        """Whether a frame that was followed after others that were not is made like those of a kind."""
        return frame.core == settled.second.core and self.reads_the_same(frame, settled)

    def reads_the_same(self, frame: Frame, settled: Settled, operations: int | None = None) -> bool:
        """Whether a frame reads what all frames of a kind read from one place, as the text of a prompt.

        Args:
            frame: a frame with the operations of that kind.
            settled: the kind.
            operations: so many of its first operations are looked at, inputs not counted; all by default.
        """
        second = settled.second
        back = self.links_back(settled.first, second) or {}
        wanted = {(source, self._core_place(second, target)) for (source, target), far in back.items() if not far}
        links = self._links_to(frame)
        known = {(source, self._core_place(frame, target)) for source, target, _ in links.T.tolist()}
        return {link for link in wanted if operations is None or link[1] < operations} <= known

    def _core_place(self, frame: Frame, operation: int) -> int:
        if frame.number not in self._places:
            _, kind, _ = self._notes.operations(frame.first, frame.last)
            self._places[frame.number] = np.cumsum(kind != INPUT) - 1
        return int(self._places[frame.number][operation - frame.first])

    def _hashes(self, frame: Frame) -> tuple[bytes, bytes]:
        name, kind, call = self._notes.operations(frame.first, frame.last)
        inside = np.where(call >= frame.edge, call - frame.edge, -1)
        links = self._links_to(frame)
        links = links[:, links[0] >= frame.first]
        links[:2] -= frame.first
        links = links[:, np.lexsort(links)]
        whole = hashlib.blake2b(np.stack([name, kind, inside]).tobytes(), digest_size=16)
        whole.update(links.tobytes())
        whole.update(repr(self._notes.late(frame.first, frame.last)).encode())
        kept = kind != INPUT
        place = np.cumsum(kept) - 1
        core = hashlib.blake2b(np.stack([name, kind, inside])[:, kept].tobytes(), digest_size=16)
        between = links[:, kept[links[0]] & kept[links[1]]]
        between[:2] = place[between[:2]]
        core.update(between.tobytes())
        return whole.digest(), core.digest()

    def _links_to(self, frame: Frame) -> np.ndarray:
        """Rows `source`, `target` and `state` of the links whose target is in a frame."""
        links = self._notes.links(frame.link)
        found: np.ndarray = links[:, (links[1] >= frame.first) & (links[1] < frame.last)]
        return np.unique(found, axis=1)

    def _ends(self, frame: Frame) -> dict[tuple[int, int], tuple[_Ends, _Ends]]:
        """Links to a frame from others, by their ends: how far back they come from, and from where at all."""
        links = self._links_to(frame)
        starts = np.array([one.first for one in self.frames])
        found: dict[tuple[int, int], tuple[_Ends, _Ends]] = {}
        for source, target, state in links[:, links[0] < frame.first].T.tolist():
            of = self.frames[int(np.searchsorted(starts, source, side="right")) - 1]
            place = target - frame.first
            back = (place, state, frame.number - of.number, source - of.first, hash(of.key))
            found.setdefault((source, target), (back, (place, state, 0, source, 0)))
        return found

    def links_back(self, first: Frame, second: Frame) -> dict[tuple[int, int], int] | None:
        """How the links of two frames from earlier ones go on; None where they are not alike.

        Returns:
            The ends of each link to the second -> how many frames it goes back, 0 where it comes from the same place
            whatever the frame.
        """
        before, after = self._ends(first), self._ends(second)
        if len(before) != len(after):
            return None
        known = {end for ends in before.values() for end in ends}
        found = {}
        for link, (back, fixed) in after.items():
            if fixed in known:
                found[link] = 0
            elif back in known:
                found[link] = back[2]
            else:
                return None
        return found


def _is_sample(number: int) -> bool:
    """16 and 17, 64 and 65, 256 and 257, ..."""
    even = number & ~1
    return even >= _FIRST_SAMPLE and even & (even - 1) == 0 and even.bit_length() % 2 == 1
