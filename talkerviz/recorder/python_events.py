"""Event log of calls in Python, the twin of `native/tap.c` for installations without a C compiler.

It patches nothing: forward hooks call `begin`, `end` and `fail`.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from talkerviz.recorder.tensor_signatures import Describer, TensorKinds
from talkerviz.trace.event_log import GARBAGE, MARK, NAMED, PAUSE, REQUEST, RUN, WIDTH

NO_LANDMARK, FRAME_LANDMARK, PASS_LANDMARK, RULE_LANDMARK = range(4)
"""Effect of a landmark's calls: none; begin a frame, if outermost; call `entered`, if outermost; call `entered` and
`left`."""
LANDMARK_ONLY, NOT_RECORDED = -1, -2
"""Numbers of modules without call events: landmarks that are not recorded, and modules that are neither."""
EXCLUDED, JOINS, JOINS_OTHERS = range(3)
"""Answers of `joins`: a thread's calls are not recorded; they are; they are, as part of other threads' passes."""
_FLUSH_NS = 500_000_000  # half a second between writes to disk, to bound what a killed process loses


@dataclass(frozen=True)
class Callbacks:
    """Functions of the recording that a log calls; the defaults do nothing.

    Attributes:
        entered: called with (module, args, kwargs) before a call of a landmark.
        left: called with (module) after a landmark's call has returned or raised, for `RULE_LANDMARK`.
        failed: function from the type of an exception to -1 minus its number.
        joins: returns whether the current thread's calls are recorded: `EXCLUDED`, `JOINS` or `JOINS_OTHERS`; called
            once for each thread.
        full: called on a thread that has events to write to disk; returns whether it has logged its own duration.
        stranger: called with (module, whether inside a watched call) for some calls of unwatched modules.
        moved: called with the value of `Contexts.placed` before a call whose context differs from that of the thread's
            previous call, once contexts are followed.
        stamp: called with (whether the call begins) just outside the begin and end times of a call; None for no-op.
        edge: called with the module's number before a call's begin is logged, and with -1 minus the number after its
            end; None for no-op.
    """

    entered: Callable[..., None] = lambda module, args, kwargs: None
    left: Callable[[nn.Module], None] = lambda module: None
    failed: Callable[[type[BaseException]], int] = lambda error: -1
    joins: Callable[[], int] = lambda: JOINS
    full: Callable[[], bool] = lambda: True
    stranger: Callable[[nn.Module, bool], None] = lambda module, inside: None
    moved: Callable[[Any], None] = lambda placed: None
    stamp: Callable[[bool], None] | None = None
    edge: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Contexts:
    """Context variables of calls, set for each thread or asyncio task.

    Attributes:
        phase: number of the phase that the code has named.
        placed: mark (phase, frame, step, request) of the context's latest pass.
        here: True in the contexts whose calls are recorded; None if all calls are.
    """

    phase: ContextVar[int]
    placed: ContextVar[Any]
    here: ContextVar[bool] | None = None


class _Watched(NamedTuple):
    module: nn.Module | None
    number: int
    layer: int
    landmark: int


@dataclass
class _Log:
    number: int
    events: array[int] = field(default_factory=lambda: array("q"))
    flushed_ns: int = field(default_factory=perf_counter_ns)
    garbage_ns: int = 0
    own_ns: int = 0
    calls: int = 0
    skipped_calls: int = 0
    mark: tuple[int, int, int, int] = (-1, -1, -1, -1)
    placed: Any = None
    named: int = -1
    passes_deep: int = 0
    depth: int = 0
    excluded: bool = False
    taken: int = 0

    def push(self, what: int, tensors: int, time: int, value: int) -> None:
        # `what` and `tensors` are 32 bits each, packed as in the native tap's events.
        self.events.extend((what & 0xFFFFFFFF | tensors << 32, time, value))


def _tensor_device(values: tuple[Any, ...]) -> int:
    """Return the index of the device of the first tensor on an accelerator; -1 for none."""
    with torch._C.DisableTorchFunctionSubclass():
        for value in values:
            if isinstance(value, Tensor) and value.device.type not in ("cpu", "meta"):
                return value.device.index or 0
    return -1


class PythonEvents:
    """The interface of `_tap.Tap` without the patched `nn.Module.__call__`; `make_events` has the arguments."""

    def __init__(
        self,
        names: dict[str, int],
        kinds: TensorKinds,
        callbacks: Callbacks,
        contexts: Contexts,
        start: int,
        frame: int,
        timed: bool,
        limit: int,
        device_stamps: Any,
    ) -> None:
        self._describer = Describer(names, kinds)
        self._entered, self._left, self._failed = callbacks.entered, callbacks.left, callbacks.failed
        self._joins, self._full, self._stamp = callbacks.joins, callbacks.full, callbacks.stamp
        self._edge = callbacks.edge
        self._moved = callbacks.moved
        self._phase, self._placed, self._here = contexts.phase, contexts.placed, contexts.here
        self._frame_phase, self._frame, self._run = frame, -1, 0
        self._latest_mark = self._start = (start, -1, -1, -1)
        self._passes = 0  # landmarks being called, on all threads
        self._names_phases, self._first_named, self._follows_contexts = False, -1, False
        self._named_where: Callable[[], int] = lambda: self._phase.get()
        self._limit = limit
        self._device_stamps = device_stamps
        self._now = perf_counter_ns if timed else lambda: -1
        self._watched: dict[int, _Watched] = {}
        self._logs: list[_Log] = []
        self._of_thread = threading.local()

    def watch(self, module: nn.Module, number: int, layer: int, landmark: int, keep: bool) -> None:
        """Log a module's calls from here on.

        Args:
            module: the module.
            number: its number in events, or `LANDMARK_ONLY` or `NOT_RECORDED`.
            layer: index of its layer in a cache; -1 for none.
            landmark: one of the constants `..._LANDMARK`.
            keep: whether to keep the module alive; if not, it must be unwatched when it dies.
        """
        self._watched[id(module)] = _Watched(module if keep else None, number, layer, landmark)

    def unwatch(self, identity: int) -> None:
        """Forget the module with this `id`."""
        self._watched.pop(identity, None)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Log that a call begins."""
        entered = self._now()
        watched, log = self._watched_and_log(module)
        if log is None:
            self._count_skipped(watched)
            return
        garbage = log.garbage_ns
        self._passes += watched.landmark != NO_LANDMARK
        outermost = log.passes_deep == 0
        log.passes_deep += watched.landmark in (FRAME_LANDMARK, PASS_LANDMARK)
        if watched.landmark == FRAME_LANDMARK and outermost:
            self._frame += 1
            self.mark(self._frame_phase, self._frame, -1, -1)
        elif watched.landmark == RULE_LANDMARK or (watched.landmark == PASS_LANDMARK and outermost):
            self._entered(module, args, kwargs)
        log.depth += 1
        if watched.number < 0:
            return
        if self._follows_contexts and (placed := self._placed.get(None)) is not log.placed:
            log.placed = placed
            self._moved(placed)
        if self._names_phases and (named := self._named(log)) != log.named:
            log.named = named
            log.push(NAMED, named, self._now(), 0)
        inputs = self._describer.of_inputs(args, kwargs, watched.layer)
        if self._edge is not None:
            self._edge(watched.number)
        if self._stamp is not None:
            self._stamp(True)
        if self._device_stamps is not None:
            device, frame = _tensor_device((*args, *kwargs.values())), log.mark[1]
            self._stamp_device(log, True, watched.number, device, frame)
        time = self._now()
        own = time - entered - (log.garbage_ns - garbage)
        log.push(watched.number, inputs, time, own)
        log.own_ns += own
        log.calls += 1
        self._flush_if_due(log)

    def _named(self, log: _Log) -> int:
        named = self._named_where()
        return named if named >= 0 or log.number == 0 else self._first_named

    def end(self, module: nn.Module, output: Any) -> None:
        """Log that a call returns."""
        time = self._now()
        watched, log = self._watched_and_log(module)
        if log is None:
            return
        garbage, position, taken = log.garbage_ns, len(log.events), log.taken
        log.depth -= 1
        outputs = 0
        if watched.number >= 0:
            # The end is logged first: the recorder's work from here on is no part of the call.
            log.push(-1 - watched.number, 0, time, 0)
            self._stamp_end(log, watched.number)
            if self._edge is not None:
                self._edge(-1 - watched.number)
            outputs = self._describer.of_output(output, watched.layer)
        self._leave_landmark(log, watched, module)
        own = self._now() - time - (log.garbage_ns - garbage)
        log.own_ns += own
        if watched.number >= 0 and log.taken == taken:
            log.events[position] |= outputs << 32
            log.events[position + 2] = own
        self._flush_if_due(log)

    def fail(self, module: nn.Module, error: type[BaseException]) -> None:
        """Log that a call raises."""
        time = self._now()
        watched, log = self._watched_and_log(module)
        if log is None:
            return
        log.depth -= 1
        if watched.number >= 0:
            self._stamp_end(log, watched.number)
            log.push(-1 - watched.number, self._failed(error), time, 0)
            if self._edge is not None:
                self._edge(-1 - watched.number)
        self._leave_landmark(log, watched, module)
        self._flush_if_due(log)

    def _stamp_end(self, log: _Log, number: int) -> None:
        if self._device_stamps is not None:
            self._stamp_device(log, False, number)
        if self._stamp is not None:
            self._stamp(False)

    def _stamp_device(self, log: _Log, entry: bool, module: int, device: int = -1, frame: int = -1) -> None:
        # Its depth is that of the call: `begin` and `end` count it differently.
        depth = log.depth - 1 if entry else log.depth
        self._device_stamps.stamp_call(log.number, entry, depth, module, device, frame, log.own_ns)

    def _leave_landmark(self, log: _Log, watched: _Watched, module: nn.Module) -> None:
        self._passes -= watched.landmark != NO_LANDMARK
        log.passes_deep -= watched.landmark in (FRAME_LANDMARK, PASS_LANDMARK)
        if watched.landmark == RULE_LANDMARK:
            self._left(module)

    def _watched_and_log(self, module: nn.Module) -> tuple[_Watched, _Log | None]:
        watched = self._watched.get(id(module), _Watched(None, NOT_RECORDED, -1, NO_LANDMARK))
        if watched.number == NOT_RECORDED:
            return watched, None
        log = self._log()
        return watched, None if log.excluded or not self._is_here() else log

    def _is_here(self) -> bool:
        return self._here is None or self._here.get(False)

    def _count_skipped(self, watched: _Watched) -> None:
        if watched.number != NOT_RECORDED:
            self._log().skipped_calls += 1

    def _log(self) -> _Log:
        log: _Log | None = getattr(self._of_thread, "log", None)
        if log is None:
            joins = self._joins() if self._logs else JOINS_OTHERS
            log = self._of_thread.log = _Log(len(self._logs), excluded=joins == EXCLUDED)
            self._logs.append(log)
            log.push(RUN, self._run, self._now(), 0)
            # A thread that runs beside a pass is a part of it, as the threads of DataParallel are.
            self._set_mark(log, self._latest_mark if joins == JOINS_OTHERS or self._passes else self._start)
        return log

    def _set_mark(self, log: _Log, mark: tuple[int, int, int, int]) -> None:
        phase, frame, step, request = mark
        if request != log.mark[-1]:
            log.push(REQUEST, request, self._now(), 0)
        log.mark = mark
        log.push(MARK, phase, self._now(), (frame + 1) << 24 | (step + 1))

    def _flush_if_due(self, log: _Log) -> None:
        now = perf_counter_ns()
        if len(log.events) >= self._limit * WIDTH or now - log.flushed_ns >= _FLUSH_NS:
            log.flushed_ns, garbage = now, log.garbage_ns
            if self._device_stamps is not None:
                self._device_stamps.pause(log.number, True)
            accounted = self._full()
            if self._device_stamps is not None:
                self._device_stamps.pause(log.number, False)
            if not accounted and self._now() >= 0:
                took = perf_counter_ns() - now - (log.garbage_ns - garbage)
                log.own_ns += took
                log.push(PAUSE, 0, 0, took)

    def put(self, what: int, tensors: int, time: int, value: int) -> None:
        """Add an event to this thread's log."""
        self._log().push(what, tensors, time, value)

    def garbage(self, generation: int, took_ns: int) -> None:
        """Log a finished garbage collection.

        Args:
            generation: the collected generation.
            took_ns: its duration in nanoseconds, which is not counted as the recorder's own.
        """
        log = getattr(self._of_thread, "log", None)
        if log is not None and not log.excluded:
            log.garbage_ns += took_ns
            log.push(GARBAGE, generation, self._now(), took_ns)

    def mark(self, phase: int, frame: int, step: int, request: int) -> None:
        """Set the mark of this thread's calls from here on.

        Args:
            phase: number of the phase.
            frame: number of the frame; -1 for none.
            step: number of the step; -1 for none.
            request: number of the request; -1 for none.
        """
        log = self._log()
        log.placed = self._placed.get(None)
        self._latest_mark = (phase, frame, step, request)
        self._set_mark(log, self._latest_mark)

    def latest(self) -> tuple[int, int, int, int, int, int]:
        """Return this thread's current phase, frame, step, request, run and named phase; -1 for none."""
        log = getattr(self._of_thread, "log", None)
        if log is None:
            return *self._latest_mark, self._run, self._first_named
        return *log.mark, self._run, log.named

    def frames(self) -> int:
        """Return the number of frames counted in this run."""
        return self._frame + 1

    def begin_run(self, run: int, phase: int) -> None:
        """Begin a run: frames are counted from 0 again."""
        self._log()
        self._run, self._frame, self._latest_mark = run, -1, (phase, -1, -1, -1)
        self._start = self._latest_mark
        for log in self._logs:
            log.push(RUN, run, self._now(), 0)
            self._set_mark(log, self._start)

    def name_phases(self, first: int, where: Callable[[], int] | None) -> None:
        """Log the phase that the code around each call has named, from here on.

        Args:
            first: number of the phase named around the recording, for calls whose own context names none; -1 for none.
            where: function that finds the phase of the running code; None to read it from the context.
        """
        self._names_phases, self._first_named = True, first
        self._named_where = where or (lambda: self._phase.get())

    def follow_contexts(self) -> None:
        """Take the mark of calls from their context from here on."""
        self._follows_contexts = True

    def exclude(self, excluded: bool) -> None:
        """Stop recording this thread's calls, or resume."""
        self._log().excluded = excluded

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Return the number of the description of a call's arguments."""
        return self._describer.of_inputs(args, kwargs)

    def describe_output(self, output: Any) -> int:
        """Return the number of the description of a call's result."""
        return self._describer.of_output(output)

    def take(self, thread: int) -> bytes:
        """Return a thread's events as bytes and remove them from its log."""
        events = self._logs[thread].events
        self._logs[thread].taken += 1
        taken = events[:]
        del events[: len(taken)]
        return taken.tobytes()

    def take_rows(self) -> bytes:
        """Return the descriptions of tensors that are new since the last call."""
        return self._describer.take()

    def thread(self) -> int:
        """Return the number of the current thread."""
        return self._log().number

    def threads(self) -> int:
        """Return the number of threads."""
        return len(self._logs)

    def totals(self) -> tuple[int, int, int, int]:
        """Return the counts of calls, recorder nanoseconds, calls on excluded threads, and calls of unknown modules."""
        sums = [sum(getattr(log, name) for log in self._logs) for name in ("calls", "own_ns", "skipped_calls")]
        return sums[0], sums[1], sums[2], 0

    def own_ns(self) -> int:
        """Return the recorder's own time on this thread, in nanoseconds."""
        return self._log().own_ns

    def close(self) -> None:
        """Stop watching all modules."""
        self._watched.clear()
