"""Marks of a recording: the phase, frame, step, run and request that calls begin in."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

from torch import nn

from talkerviz.recorder.phases import PhaseRule
from talkerviz.recorder.phases.generic import PassPhases, passes_of
from talkerviz.recorder.phases.several_roots import RootPhases
from talkerviz.recorder.phases.user_defined import NO_PHASE, PhaseBlocks
from talkerviz.recorder.python_events import FRAME_LANDMARK, NO_LANDMARK, PASS_LANDMARK, RULE_LANDMARK
from talkerviz.recorder.tap import not_compiled
from talkerviz.trace.event_log import Mark


class PhaseMarker:
    """Logs a mark whenever a landmark's call, or a block of the user's, begins another phase, frame or step.

    Args:
        modules: every module by path.
        root: path of the model.
        make_rule: makes the rule of a run from `root`; None for the generic rule.
        several: rule of several models, which more may join; None for a single one.
        paths: path of each recorded module, by its `id`; the recording adds modules to it.
        phases: names of phases by number; new ones are appended.
        tokens: context variables set on the thread that begins the recording, to be reset; appended to.
        may_count_frames: whether the log may count frames by itself, without a call of Python.

    Attributes:
        blocks: open `with rec.phase(...)` blocks.
        placed: mark of the last landmark's call in the current context: that of a thread, or of an asyncio task.
        marks: marks by number, see `current_number`.
        listeners: functions called with the new mark, on the thread that enters it.
        last_frame: the highest frame of this run; None if there is none.
        has_user_frames: whether the user named frames in the run.
        on_pass: called with the module of each pass; returns whether it has set the mark.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        root: str,
        make_rule: Callable[[str], PhaseRule] | None,
        several: RootPhases | None,
        paths: Mapping[int, str],
        phases: list[str],
        tokens: list[tuple[ContextVar[Any], Token[Any]]],
        may_count_frames: bool,
    ) -> None:
        self._several = several
        self._counts_frames = False
        if several is not None:
            self._make_rule: Callable[[str], PhaseRule] = lambda root: several.again()
        elif make_rule is not None:
            self._make_rule = make_rule
        else:
            passes = passes_of(modules[root], root)
            self._make_rule = lambda root: PassPhases(root, passes)
            # If each pass is a frame and nothing else decides phases, the log counts frames without calling Python.
            self._counts_frames = may_count_frames and PassPhases(root, passes).is_plain(modules[root])
        self._root = root
        self._rule: PhaseRule = several or self._make_rule(root)
        self._paths = paths
        # Names of positional arguments, by `id` of a landmark.
        self._arguments = {
            id(module): _argument_names(module) for path, module in modules.items() if path in self._rule.landmarks
        }
        self._run = self._runs = 0  # the current run, and the number of runs begun with `begin_run`
        self._phases = phases
        self._phase_numbers: dict[str, int] = {}
        self._first_thread, self._first_named = threading.get_ident(), NO_PHASE
        self._tokens = tokens
        self._of_thread = threading.local()
        self._mark_numbers: dict[Mark, int] = {}
        self._lock = threading.RLock()
        self._events: Any = None
        self._closed = False
        self.has_user_frames = False
        self._user_frame: ContextVar[int | None] = ContextVar("frame", default=None)
        self.blocks = PhaseBlocks(self._block_changed)
        self.placed: ContextVar[Mark | None] = ContextVar("placed", default=None)
        self.marks: list[Mark] = []
        self.listeners: list[Callable[[Mark], None]] = []
        self.last_frame: int | None = None
        self.on_pass: Callable[[nn.Module], bool] = lambda module: False

    @property
    def start(self) -> Mark:
        """Mark that a run begins with."""
        return self._rule.start

    def attach(self, events: Any) -> None:
        """Log marks in this log from here on."""
        self._events = events

    def close(self) -> None:
        """Log no more marks: the recording has ended, though threads may still be inside calls."""
        self._closed = True

    def begin_run(self) -> int:
        """Begin a run, with phases and frames anew, and return its number."""
        self._rule, self._run, self.last_frame = self._make_rule(self._root), self._runs, None
        self._runs += 1
        self._events.begin_run(self._run, self.phase_number(self._rule.start.phase))
        self._notify()
        return self._run

    def frame_at_end(self) -> int | None:
        """Return the last frame of the current run; None if there is none."""
        frames = self._events.frames()
        return frames - 1 if self._counts_frames and frames else self.last_frame

    def landmark(self, path: str) -> int:
        """Return the kind of landmark that a module is, such as `NO_LANDMARK`."""
        if path not in self._rule.landmarks:
            return NO_LANDMARK
        if self._counts_frames:
            return FRAME_LANDMARK
        return PASS_LANDMARK if self._rule.outermost else RULE_LANDMARK

    def add_root(self, path: str, tree: Mapping[str, nn.Module]) -> None:
        """Take calls of a further model for passes.

        Args:
            path: its path.
            tree: its modules by path.
        """
        for rule in {id(rule): rule for rule in (self._several, self._rule)}.values():
            if isinstance(rule, RootPhases):
                rule.add(path, tree[path])
        landmarks = self._rule.landmarks
        self._arguments |= {id(part): _argument_names(part) for name, part in tree.items() if name in landmarks}

    def add_compiled(self, module: nn.Module, original: nn.Module) -> None:
        """Take calls of a compiled module for calls of the module that it was compiled from."""
        self._arguments[id(module)] = _argument_names(original)

    # Called by the log of calls.

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Log the mark that begins with a landmark's call."""
        names = self._arguments.get(id(module))
        if names is None or self._closed or self.on_pass(module):
            return
        if args:
            named = {names[index] if index < len(names) else str(index): value for index, value in enumerate(args)}
            kwargs = {**named, **kwargs}
        self._set_mark(self._rule.entered(self._paths[id(module)], kwargs))

    def left(self, module: nn.Module) -> None:
        """Log the mark that begins as a landmark's call returns."""
        path = self._paths.get(id(module))
        if path is not None and not self._closed:
            self._set_mark(self._rule.left(path))

    def moved(self, mark: Mark | None) -> None:
        """Log the mark of a context from which the thread makes its next call, if it is not that of the last call.

        Args:
            mark: the context's value of `placed`.
        """
        if not self._closed:
            self._log_mark(self._rule.start if mark is None or mark.run != self._run else mark)

    def end_counting(self) -> frozenset[str]:
        """Stop having the log count frames by itself, and return the landmarks that it counted at."""
        if not self._counts_frames:
            return frozenset()
        frames = self._events.frames()
        self._counts_frames, self.last_frame = False, frames - 1 if frames else None
        return self._rule.landmarks

    @contextmanager
    def user_frame(self) -> Iterator[int]:
        """Give calls inside the next frame, whatever the rule says, and yield its number."""
        frame = 0 if self.last_frame is None else self.last_frame + 1
        self.last_frame, self.has_user_frames = frame, True
        token = self._user_frame.set(frame)
        before = self.current()
        self.set_mark(before)
        try:
            yield frame
        finally:
            try:
                self._user_frame.reset(token)
            except ValueError:  # it ends in another context
                self._user_frame.set(None)
            self.set_mark(before)

    def set_mark(self, mark: Mark) -> None:
        """Log a mark that no rule has set."""
        if not self._closed:
            self._set_mark(mark)

    def _set_mark(self, mark: Mark | None) -> None:
        if mark is None:
            return
        if (frame := self._user_frame.get()) is not None:
            mark = mark._replace(frame=frame)
        elif self.has_user_frames:
            mark = mark._replace(frame=None)
        if mark.frame is not None:
            self.last_frame = max(mark.frame, self.last_frame or 0)
        if self.placed.get() is not getattr(self._of_thread, "mark", None):
            self._events.follow_contexts()  # several take turns on this thread
        self._of_thread.mark = mark = Mark(mark.phase, mark.frame, mark.step, self._run, mark.request)
        token = self.placed.set(mark)
        if threading.get_ident() == self._first_thread and token.old_value is Token.MISSING:
            self._tokens.append((self.placed, token))
        self._log_mark(mark)

    def _log_mark(self, mark: Mark) -> None:
        frame, step, request = (-1 if number is None else number for number in (mark.frame, mark.step, mark.request))
        self._events.mark(self.phase_number(mark.phase), frame, step, request)
        if self.listeners:
            self._notify()

    def _block_changed(self, find: Callable[[], int] | None) -> None:
        if self._closed:
            return
        if threading.get_ident() == self._first_thread:
            self._first_named = self.blocks.of_context.get()
        self._events.name_phases(self._first_named, find and not_compiled(find))
        self._notify()

    def _notify(self) -> None:
        for listener in self.listeners:
            listener(self.current())

    # Numbers.

    def current(self) -> Mark:
        """Return the mark of a call that begins now on this thread."""
        phase, frame, step, request, run, named = self._events.latest()
        phase = next(number for number in (self.blocks.find(), named, phase) if number >= 0)
        frame, step, request = (None if number < 0 else number for number in (frame, step, request))
        return Mark(self._phases[phase], frame, step, run, request)

    def current_number(self) -> int:
        """Return the index of `current` in `marks`."""
        mark = self.current()
        with self._lock:
            number = self._mark_numbers.get(mark)
            if number is None:
                self.marks.append(mark)
                number = self._mark_numbers[mark] = len(self.marks) - 1
        return number

    def phase_number(self, phase: str) -> int:
        """Return the number of a phase, a new one for a new name."""
        number = self._phase_numbers.get(phase)
        if number is None:
            with self._lock:
                if phase not in self._phase_numbers:
                    self._phases.append(phase)
                    self._phase_numbers[phase] = len(self._phases) - 1
                number = self._phase_numbers[phase]
        return number


def _argument_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of positional arguments of a module's `forward`, as far as they are known."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except Exception:  # a forward that is not Python's; a scripted one raises any exception
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in positional)
