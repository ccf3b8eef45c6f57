"""Scope of a recording: the threads, contexts and processes whose calls it records."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from multiprocessing.process import BaseProcess
from typing import Any

from talkerviz.recorder.python_events import EXCLUDED, JOINS, JOINS_OTHERS

# By `id`. A dictionary's values are copied in one step, so other threads may begin and end recordings meanwhile.
_active: dict[int, RecordingScope] = {}


def _count_fork() -> None:
    for scope in list(_active.values()):
        scope.processes += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_count_fork)


class RecordingScope:
    """Scope of one recording, made on the thread that begins it.

    Args:
        only_here: whether to record only calls of this thread or task, and of copies of its context.
        whole_process: whether it has the calls of all threads, whichever begins it.
        tokens: context variables set on the thread that begins the recording, to be reset; appended to.

    Attributes:
        here: True in the contexts whose calls are recorded; None if all are.
        processes: number of processes that were forked or started in the run.
    """

    def __init__(self, only_here: bool, whole_process: bool, tokens: list[tuple[ContextVar[Any], Token[Any]]]) -> None:
        self.here: ContextVar[bool] | None = ContextVar("here", default=False) if only_here else None
        self.processes = 0
        self._tokens = tokens
        self._first_thread = threading.main_thread().ident if whole_process else threading.get_ident()
        self._earlier_threads: weakref.WeakSet[threading.Thread] = (
            weakref.WeakSet() if whole_process else _other_threads()
        )
        self._process = os.getpid()
        self._events: Any = None
        self._closed = False

    def attach(self, events: Any, undo: list[Callable[[], None]]) -> None:
        """Begin to record: a thread that begins a recording is excluded from the recordings of other threads.

        Args:
            events: the log of calls.
            undo: functions that undo it, appended to.
        """
        self._events = events
        if self.here is not None:
            self._tokens.append((self.here, self.here.set(True)))
        for other in list(_active.values()):
            other._exclude_thread(undo)
        undo.append(self._leave)
        _active[id(self)] = self

    def _leave(self) -> None:
        _active.pop(id(self), None)

    def close(self) -> None:
        """End it: the recording has ended, and so has its log."""
        self._closed = True

    def is_forked(self) -> bool:
        """Return whether this process was forked from the one that records."""
        return os.getpid() != self._process

    def _exclude_thread(self, undo: list[Callable[[], None]]) -> None:
        if threading.get_ident() == self._first_thread or self._closed or self.is_forked():
            return
        self._events.exclude(True)
        undo.append(lambda: None if self._closed else self._events.exclude(False))

    def joins(self) -> int:
        """Return whether calls of this thread are recorded: `JOINS`, `JOINS_OTHERS` or `EXCLUDED`.

        All threads of a program are, but a recording that a thread of a server begins is of that thread's request:
        threads that ran before it serve others. Threads that torch begins, such as autograd's, do work of others.
        """
        thread = threading.current_thread()
        if isinstance(thread, threading._DummyThread):
            return JOINS_OTHERS
        if self.here is not None:
            return JOINS  # contexts decide
        ident = threading.get_ident()
        if any(other is not self and other._first_thread == ident for other in list(_active.values())):
            return EXCLUDED
        return EXCLUDED if thread in self._earlier_threads else JOINS

    def wrap_process_start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a `BaseProcess.start` that counts the process; `_count_fork` counts those that are forked."""

        def start(process: BaseProcess) -> Any:
            if getattr(process, "_start_method", "fork") != "fork":
                self.processes += 1
            return original(process)

        return start


def _other_threads() -> weakref.WeakSet[threading.Thread]:
    """Return the threads that run beside this one; none if this is the program's main thread."""
    if threading.current_thread() is threading.main_thread():
        return weakref.WeakSet()
    # Threads that Python's threading did not begin, such as autograd's, do work of others.
    begun = (thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread))
    return weakref.WeakSet(thread for thread in begun if thread is not threading.current_thread())
