"""Sampling of the frames whose tensors are followed: every frame until they repeat, then a few.

Following is several times slower than the run. Frames of a loop have the same operations, so a few of them are
followed, and the `Flow` maps every other frame to the followed frame that it repeats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from talkerviz.recorder.dataflow.builder import INPUT, FlowBuilder
from talkerviz.trace.event_log import Mark
from talkerviz.trace.schema import Tensors

_CHANGES: ContextVar[frozenset[int]] = ContextVar("changes", default=frozenset())
_FIRST_SAMPLE = 16  # frame number in its loop; a power of 4, as `_is_sample` requires
_MAX_ALTERNATING_KINDS = 4  # kinds of frames that may alternate in a loop; of more, each frame counts as a change
_FORGET_AFTER_FRAMES = 16  # of a loop: a kind that has not come again by then was an exception

Key = tuple[str, str, int]
"""Kind of a frame: its loop, see `Frame.loop`, and a hash of the modules that it called."""

_LinkEnd = tuple[int, int, int, int, int]


@dataclass
class Frame:
    """A frame, or a segment of the run outside of frames.

    Attributes:
        number: its index among all frames of the run.
        mark: number of the mark that it began with.
        loop: phases of the frame before it and of the frame itself.
        edge: call edge at which it begins.
        first, last: its first operation, and the one after its last.
        link: its first link between operations.
        followed: whether its tensors were followed.
        complete: whether the previous frame was followed too, so that all sources of this frame are known.
        calls: hash of the modules that it called, in order.
        ops: hash of its operations and of the links between them.
        core: hash of the same without inputs.
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
        """Kind of the frame."""
        return (*self.loop, self.calls)


@dataclass(frozen=True)
class SteadyState:
    """Two frames of a kind with the same operations and links, links from other frames included.

    Attributes:
        first, second: the two frames; frames that were not followed repeat the second.
    """

    first: Frame
    second: Frame


@dataclass
class _Loop:
    """Consecutive frames of one phase.

    Attributes:
        frames: number of frames begun.
        waiting: kinds without a steady state -> number of frames begun when a frame of the kind last ended.
    """

    frames: int = 0
    waiting: dict[Key, int] = field(default_factory=dict)


@contextmanager
def following_changes_of(calls: pd.DataFrame) -> Iterator[None]:
    """Follow the frames that differ from their neighbours in another run, and the last, in recordings begun inside.

    These frames are followed even if their loop is in a steady state.

    Args:
        calls: the calls table of a run of the same program.
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
    call_kinds = np.stack([own["path"].cat.codes, own["phase"].cat.codes, own["depth"]], axis=1)
    begins = np.concatenate([[0], np.flatnonzero(np.diff(frame)) + 1])
    parts = np.split(call_kinds, begins[1:])
    numbers = frame[begins].tolist()
    changed = {numbers[-1]}
    for index in range(1, len(parts)):
        earlier = parts[max(index - _MAX_ALTERNATING_KINDS, 0) : index]
        if not any(np.array_equal(part, parts[index]) for part in earlier):
            changed.update(numbers[max(index - 1, 0) : index + 2])
    growth = _growth_of_frames(own, begins, parts)
    for index in range(1, len(growth)):
        if growth[index] and growth[index] not in growth[max(index - _MAX_ALTERNATING_KINDS, 0) : index]:
            changed.update(numbers[index - 1 : index + 2])
    return frozenset(changed)


def _growth_of_frames(calls: pd.DataFrame, begins: np.ndarray, parts: Sequence[np.ndarray]) -> list[bytes]:
    """Return, as bytes for each frame, the differences of tensor sizes from the frame before.

    The bytes are empty if the two frames' calls differ.

    Args:
        calls: calls of all frames.
        begins: index of each frame's first call.
        parts: module, phase and depth of each frame's calls.
    """
    known: dict[tuple[object, ...], int] = {}
    steps: dict[tuple[int, int], int] = {}
    columns = [calls[name].to_numpy() for name in ("inputs", "outputs")]
    growth = [b""]
    for index in range(1, len(parts)):
        if not np.array_equal(parts[index - 1], parts[index]):
            growth.append(b"")
            continue
        previous, current, count = begins[index - 1], begins[index], len(parts[index])
        frame_steps = []
        for column in columns:
            tensors = zip(column[previous : previous + count], column[current : current + count], strict=True)
            for before, after in tensors:
                if before is after:
                    frame_steps.append(-1)
                    continue
                pair = id(before), id(after)
                if pair not in steps:
                    steps[pair] = known.setdefault(_step(before, after), len(known))
                frame_steps.append(steps[pair])
        growth.append(np.array(frame_steps, dtype=np.int64).tobytes())
    return growth


def _step(before: Tensors, after: Tensors) -> tuple[object, ...]:
    if len(before) != len(after):
        return ()
    return tuple(
        tuple(new - old for old, new in zip(a.shape, b.shape, strict=False)) for a, b in zip(before, after, strict=True)
    )


class FollowedFrames:
    """Frames of a run, with the decision which of them are followed.

    A kind of frame is in a steady state once three consecutive frames of it were the same: in the modules called, in
    operations, and in the sources of their tensors. Frames are followed until all kinds of their loop are in a steady
    state, and then in pairs at growing intervals, to see how sizes grow.

    Args:
        builder: operations and links of the followed frames.
        marks: the recording's marks, a list that grows.

    Attributes:
        frames: the frames that have begun.
        steady_states: steady states of each kind, in the order in which they were reached.
    """

    def __init__(self, builder: FlowBuilder, marks: Sequence[Mark]) -> None:
        self._builder = builder
        self._marks = marks
        self.frames: list[Frame] = []
        self.steady_states: dict[Key, list[SteadyState]] = {}
        self._loops: dict[tuple[str, str], _Loop] = {}
        self._recent: dict[Key, list[Frame]] = {}
        self._changes = _CHANGES.get()
        self._core_indices: dict[int, np.ndarray] = {}
        self._stale: set[Key] = set()  # kinds whose tensors from before their loop may have been replaced

    def is_new(self, mark: int) -> bool:
        """Return whether a mark belongs to another frame than the latest one."""
        before, now = self._marks[self.frames[-1].mark], self._marks[mark]
        return (before.run, before.frame) != (now.run, now.frame)

    def begin(self, mark: int, edge: int) -> Frame:
        """Begin a frame; its `followed` says whether it should be followed, and the caller corrects it if it cannot."""
        before = self.frames[-1] if self.frames else None
        now = self._marks[mark]
        loop = (self._marks[before.mark].phase if before else "", now.phase)
        if before and before.loop != loop and before.key not in self.steady_states:
            self._expire(loop)
        follow = self._is_to_follow(loop) if now.frame is not None else True
        follow |= now.run == 0 and now.frame in self._changes
        complete = before is None or before.followed
        links = self._builder.link_count
        frame = Frame(len(self.frames), mark, loop, edge, len(self._builder), links, follow, complete)
        self.frames.append(frame)
        return frame

    def _expire(self, loop: tuple[str, str]) -> None:
        """Require new steady states of a loop that begins again after other frames, as with another prompt."""
        for key in self.steady_states:
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
        """End the latest frame; `calls` is a hash of the modules that it called."""
        frame = self.frames[-1]
        frame.calls, frame.last = calls, len(self._builder)
        if frame.followed:
            frame.ops, frame.core = self._hashes(frame)
        if self._marks[frame.mark].frame is None:
            return
        loop = self._loops[frame.loop]
        if self._is_steady(frame):
            loop.waiting.pop(frame.key, None)
        else:
            loop.waiting[frame.key] = loop.frames
        for key, seen in list(loop.waiting.items()):
            if loop.frames - seen > _FORGET_AFTER_FRAMES:
                del loop.waiting[key]

    def _is_steady(self, frame: Frame) -> bool:
        known = self.steady_states.get(frame.key)
        stale = frame.key in self._stale
        if not frame.followed:
            return known is not None and not stale
        if known is not None and not stale and any(self.is_alike(frame, steady) for steady in known):
            return True
        recent = [*self._recent.get(frame.key, ()), frame][-3:]
        self._recent[frame.key] = recent
        if len(recent) < 3 or len({each.ops for each in recent}) > 1 or not all(each.complete for each in recent):
            return False
        first, second, _ = recent
        # A read of a part of a tensor may link earlier operations: links are complete once the next frame is over.
        if not all(self.frames[each.number + 1].followed for each in (first, second)):
            return False
        if self.links_back(first, second) is None:
            return False
        self.steady_states.setdefault(frame.key, []).append(SteadyState(first, second))
        self._stale.discard(frame.key)
        return True

    def is_alike(self, frame: Frame, steady: SteadyState) -> bool:
        """Return whether a frame, followed after frames that were not, is in a steady state of its kind."""
        return frame.core == steady.second.core and self.reads_the_same(frame, steady)

    def reads_the_same(self, frame: Frame, steady: SteadyState, operations: int | None = None) -> bool:
        """Return whether a frame reads the tensors from before the loop that its kind reads, as a prompt's embedding.

        Args:
            frame: a frame with the operations of that kind.
            steady: the steady state of the kind.
            operations: number of its first operations to compare, inputs not counted; all by default.
        """
        second = steady.second
        back = self.links_back(steady.first, second) or {}
        wanted = {
            (source, self._core_index(second, target)) for (source, target), distance in back.items() if not distance
        }
        links = self._links_to(frame)
        known = {(source, self._core_index(frame, target)) for source, target, _ in links.T.tolist()}
        return {link for link in wanted if operations is None or link[1] < operations} <= known

    def _core_index(self, frame: Frame, operation: int) -> int:
        """Return an operation's index among those of its frame that are no inputs."""
        if frame.number not in self._core_indices:
            _, kind, _ = self._builder.operations(frame.first, frame.last)
            self._core_indices[frame.number] = np.cumsum(kind != INPUT) - 1
        return int(self._core_indices[frame.number][operation - frame.first])

    def _hashes(self, frame: Frame) -> tuple[bytes, bytes]:
        name, kind, call = self._builder.operations(frame.first, frame.last)
        inside = np.where(call >= frame.edge, call - frame.edge, -1)
        links = self._links_to(frame)
        links = links[:, links[0] >= frame.first]
        links[:2] -= frame.first
        links = links[:, np.lexsort(links)]
        whole = hashlib.blake2b(np.stack([name, kind, inside]).tobytes(), digest_size=16)
        whole.update(links.tobytes())
        whole.update(repr(self._builder.late(frame.first, frame.last)).encode())
        kept = kind != INPUT
        index = np.cumsum(kept) - 1
        core = hashlib.blake2b(np.stack([name, kind, inside])[:, kept].tobytes(), digest_size=16)
        between = links[:, kept[links[0]] & kept[links[1]]]
        between[:2] = index[between[:2]]
        core.update(between.tobytes())
        return whole.digest(), core.digest()

    def _links_to(self, frame: Frame) -> np.ndarray:
        """Return rows `source`, `target` and `state` of the links whose target is in a frame."""
        links = self._builder.links(frame.link)
        to_frame: np.ndarray = links[:, (links[1] >= frame.first) & (links[1] < frame.last)]
        return np.unique(to_frame, axis=1)

    def _link_ends(self, frame: Frame) -> dict[tuple[int, int], tuple[_LinkEnd, _LinkEnd]]:
        """Return the ends of links to a frame from earlier ones: relative to the two frames, and absolute."""
        links = self._links_to(frame)
        starts = np.array([each.first for each in self.frames])
        ends: dict[tuple[int, int], tuple[_LinkEnd, _LinkEnd]] = {}
        for source, target, state in links[:, links[0] < frame.first].T.tolist():
            origin = self.frames[int(np.searchsorted(starts, source, side="right")) - 1]
            index = target - frame.first
            relative = (index, state, frame.number - origin.number, source - origin.first, hash(origin.key))
            ends.setdefault((source, target), (relative, (index, state, 0, source, 0)))
        return ends

    def links_back(self, first: Frame, second: Frame) -> dict[tuple[int, int], int] | None:
        """Match the links of two frames from earlier frames.

        Returns:
            (source, target) of each link to the second frame -> number of frames it goes back, 0 for a source that is
            the same operation for both frames; None if the links of the two frames do not match.
        """
        before, after = self._link_ends(first), self._link_ends(second)
        if len(before) != len(after):
            return None
        known = {end for ends in before.values() for end in ends}
        distances = {}
        for link, (relative, absolute) in after.items():
            if absolute in known:
                distances[link] = 0
            elif relative in known:
                distances[link] = relative[2]
            else:
                return None
        return distances


def _is_sample(number: int) -> bool:
    """Return whether a frame is sampled: 16 and 17, 64 and 65, 256 and 257, ..."""
    even = number & ~1
    return even >= _FIRST_SAMPLE and even & (even - 1) == 0 and even.bit_length() % 2 == 1
