"""Log the two ends of calls in Python: what `native/tap.c` does, where that could not be built.

It has no way in of its own: forward hooks call `begin`, `end` and `fail`.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any, NamedTuple

from torch import nn

from talkerviz.recorder.tensor_signatures import Describer, TensorKinds
from talkerviz.trace.event_log import GARBAGE, MARK, NAMED, PAUSE, REQUEST, RUN, WIDTH

NO_LANDMARK, FRAME_LANDMARK, PASS_LANDMARK, RULE_LANDMARK = range(4)
"""What calls of a landmark do: nothing; begin a frame, if outermost; tell the phases' rule, if outermost; tell it, and
when they return."""
LANDMARK_ONLY, NOT_RECORDED = -1, -2
EXCLUDED, JOINS, JOINS_OTHERS = range(3)
"""What `joins` answers: calls of a thread are not recorded; they are; and they are part of what other threads began."""
_FLUSH_NS = 500_000_000


@dataclass(frozen=True)
class Callbacks:
    """What a log tells and asks its recording; by default nobody listens.

    Attributes:
        entered: (module, args, kwargs) of a landmark of the phases' rule about to be called.
        left: (module) of one that has returned or raised.
        failed: the type of an exception -> -1 less its number.
        joins: () -> whether calls of the thread that runs it are recorded: `EXCLUDED`, `JOINS` or `JOINS_OTHERS`; asked
            once a thread.
        full: () -> whether it has logged itself what it took; called on a thread that has events to write away.
        stranger: (module, whether inside a watched call) of some that are not watched.
        moved: (value of `Contexts.placed`) before a call of another context than the one before on its thread, once
            contexts are followed.
        stamp: (whether the call begins) just outside the two times of a call, or None.
    """

    entered: Callable[..., None] = lambda module, args, kwargs: None
    left: Callable[[nn.Module], None] = lambda module: None
    failed: Callable[[type[BaseException]], int] = lambda error: -1
    joins: Callable[[], int] = lambda: JOINS
    full: Callable[[], bool] = lambda: True
    stranger: Callable[[nn.Module, bool], None] = lambda module, inside: None
    moved: Callable[[Any], None] = lambda placed: None
    stamp: Callable[[bool], None] | None = None


@dataclass(frozen=True)
class Contexts:
    """What goes with the context of a call, that of a thread or of one of asyncio's tasks.

    Attributes:
        phase: the number of the phase that code has named.
        placed: what calls belong to.
        here: True in the contexts whose calls are recorded; None where all are.
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
    passed_by: int = 0
    mark: tuple[int, int, int, int] = (-1, -1, -1, -1)
    placed: Any = None
    named: int = -1
    passes_deep: int = 0
    excluded: bool = False
    taken: int = 0

    def push(self, what: int, tensors: int, time: int, value: int) -> None:
        # Two of 32 bits in one of 64, as the native tap has them.
        self.events.extend((what & 0xFFFFFFFF | tensors << 32, time, value))


class PythonEvents:
    """What `_tap.Tap` is, but for its way in; see `tap.py` for the arguments."""

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
    ) -> None:
        self._describer = Describer(names, kinds)
        self._entered, self._left, self._failed = callbacks.entered, callbacks.left, callbacks.failed
        self._joins, self._full, self._stamp = callbacks.joins, callbacks.full, callbacks.stamp
        self._moved = callbacks.moved
        self._phase, self._placed, self._here = contexts.phase, contexts.placed, contexts.here
        self._frame_phase, self._frame, self._run = frame, -1, 0
        self._latest_mark = self._start = (start, -1, -1, -1)
        self._passes = 0  # landmarks that are being called, on all threads
        self._names_phases, self._first_named, self._follows_contexts = False, -1, False
        self._named_where: Callable[[], int] = lambda: self._phase.get()
        self._limit = limit
        self._now = perf_counter_ns if timed else lambda: -1
        self._watched: dict[int, _Watched] = {}
        self._logs: list[_Log] = []
        self._of_thread = threading.local()

    def watch(self, module: nn.Module, number: int, layer: int, landmark: int, keep: bool) -> None:
        """Log the module's calls under a number from here on; `layer` is the one of a cache that it is in, or -1.

        What is not to be kept alive must be unwatched when it dies.
        """
        self._watched[id(module)] = _Watched(module if keep else None, number, layer, landmark)

    def unwatch(self, identity: int) -> None:
        """Forget the module of this `id`."""
        self._watched.pop(identity, None)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins."""
        entered = self._now()
        watched, log = self._of(module)
        if log is None:
            self._count_passed_by(watched)
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
        if watched.number < 0:
            return
        if self._follows_contexts and (placed := self._placed.get(None)) is not log.placed:
            log.placed = placed
            self._moved(placed)
        if self._names_phases and (named := self._named(log)) != log.named:
            log.named = named
            log.push(NAMED, named, self._now(), 0)
        inputs = self._describer.of_inputs(args, kwargs, watched.layer)
        if self._stamp is not None:
            self._stamp(True)
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
        """It returns."""
        time = self._now()
        watched, log = self._of(module)
        if log is None:
            return
        garbage, place, taken = log.garbage_ns, len(log.events), log.taken
        outputs = 0
        if watched.number >= 0:
            # The end comes first in the log: what the recorder does from here on is no part of the call.
            log.push(-1 - watched.number, 0, time, 0)
            if self._stamp is not None:
                self._stamp(False)
            outputs = self._describer.of_output(output, watched.layer)
        self._leave_landmark(log, watched, module)
        own = self._now() - time - (log.garbage_ns - garbage)
        log.own_ns += own
        if watched.number >= 0 and log.taken == taken:
            log.events[place] |= outputs << 32
            log.events[place + 2] = own
        self._flush_if_due(log)

    def fail(self, module: nn.Module, error: type[BaseException]) -> None:
        """It raises."""
        time = self._now()
        watched, log = self._of(module)
        if log is None:
            return
        if watched.number >= 0:
            if self._stamp is not None:
                self._stamp(False)
            log.push(-1 - watched.number, self._failed(error), time, 0)
        self._leave_landmark(log, watched, module)
        self._flush_if_due(log)

    def _leave_landmark(self, log: _Log, watched: _Watched, module: nn.Module) -> None:
        self._passes -= watched.landmark != NO_LANDMARK
        log.passes_deep -= watched.landmark in (FRAME_LANDMARK, PASS_LANDMARK)
        if watched.landmark == RULE_LANDMARK:
            self._left(module)

    def _of(self, module: nn.Module) -> tuple[_Watched, _Log | None]:
        watched = self._watched.get(id(module), _Watched(None, NOT_RECORDED, -1, NO_LANDMARK))
        if watched.number == NOT_RECORDED:
            return watched, None
        log = self._log()
        return watched, None if log.excluded or not self._is_here() else log

    def _is_here(self) -> bool:
        return self._here is None or self._here.get(False)

    def _count_passed_by(self, watched: _Watched) -> None:
        if watched.number != NOT_RECORDED:
            self._log().passed_by += 1

    def _log(self) -> _Log:
        log: _Log | None = getattr(self._of_thread, "log", None)
        if log is None:
            joins = self._joins() if self._logs else JOINS_OTHERS
            log = self._of_thread.log = _Log(len(self._logs), excluded=joins == EXCLUDED)
            self._logs.append(log)
            log.push(RUN, self._run, self._now(), 0)
            # What runs beside a pass is a part of it, as the threads of DataParallel are.
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
            if not self._full() and self._now() >= 0:
                took = perf_counter_ns() - now - (log.garbage_ns - garbage)
                log.own_ns += took
                log.push(PAUSE, 0, 0, took)

    def put(self, what: int, tensors: int, time: int, value: int) -> None:
        """Add an event to this thread's log."""
        self._log().push(what, tensors, time, value)

    def garbage(self, generation: int, took_ns: int) -> None:
        """A garbage collection is over."""
        log = getattr(self._of_thread, "log", None)
        if log is not None and not log.excluded:
            log.garbage_ns += took_ns
            log.push(GARBAGE, generation, self._now(), took_ns)

    def mark(self, phase: int, frame: int, step: int, request: int) -> None:
        """What calls of this thread belong to from here on; -1 for no frame, no step and no request."""
        log = self._log()
        log.placed = self._placed.get(None)
        self._latest_mark = (phase, frame, step, request)
        self._set_mark(log, self._latest_mark)

    def latest(self) -> tuple[int, int, int, int, int, int]:
        """The phase, frame, step, request, run and named phase that hold on this thread, -1 for none."""
        log = getattr(self._of_thread, "log", None)
        if log is None:
            return *self._latest_mark, self._run, self._first_named
        return *log.mark, self._run, log.named

    def frames(self) -> int:
        """How many frames were counted in this run."""
        return self._frame + 1

    def begin_run(self, run: int, phase: int) -> None:
        """Begin a run: frames count anew."""
        self._log()
        self._run, self._frame, self._latest_mark = run, -1, (phase, -1, -1, -1)
        self._start = self._latest_mark
        for log in self._logs:
            log.push(RUN, run, self._now(), 0)
            self._set_mark(log, self._start)

    def name_phases(self, first: int, where: Callable[[], int] | None) -> None:
        """Calls have the phase that their context names from here on, or `where` tells, or else `first`; -1 for none.

        Args:
            first: what the code around has named, of the thread that began to record.
            where: finds it for the running code; None where contexts are enough.
        """
        self._names_phases, self._first_named = True, first
        self._named_where = where or (lambda: self._phase.get())

    def follow_contexts(self) -> None:
        """What calls belong to goes with their context from here on."""
        self._follows_contexts = True

    def exclude(self, excluded: bool) -> None:
        """Record no calls of this thread, or do again."""
        self._log().excluded = excluded

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """The number of arguments' tensors."""
        return self._describer.of_inputs(args, kwargs)

    def describe_output(self, output: Any) -> int:
        """The number of a result's tensors."""
        return self._describer.of_output(output)

    def take(self, thread: int) -> bytes:
        """A thread's events, which are let go."""
        events = self._logs[thread].events
        self._logs[thread].taken += 1
        taken = events[:]
        del events[: len(taken)]
        return taken.tobytes()

    def take_rows(self) -> bytes:
        """New descriptions of tensors."""
        return self._describer.take()

    def thread(self) -> int:
        """The number of this thread."""
        return self._log().number

    def threads(self) -> int:
        """How many threads there are."""
        return len(self._logs)

    def totals(self) -> tuple[int, int, int, int]:
        """Calls, the recorder's nanoseconds, calls of excluded threads, and calls of modules that nobody told of."""
        sums = [sum(getattr(log, name) for log in self._logs) for name in ("calls", "own_ns", "passed_by")]
        return sums[0], sums[1], sums[2], 0

    def own_ns(self) -> int:
        """Nanoseconds that the recorder took on this thread."""
        return self._log().own_ns

    def close(self) -> None:
        """Watch nothing any more."""
        self._watched.clear()
