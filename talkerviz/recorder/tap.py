"""What every call of a watched module goes through: log its beginning and its end.

While a recording goes on a tap's `call` stands in for `nn.Module.__call__`. Nothing is put on the modules themselves:
not a hook, which would send each call down torch's slow path and cost more than a microsecond before it does a thing,
nor an attribute, which copies made during the run would carry to other modules. A module that is not watched goes
straight on. Around a watched one the way on is what it was, so its own hooks, and a `forward` that someone has
replaced, work as ever; keyword arguments arrive as they are, and every way out is seen.

`_tap.c` is the same in C, ten times cheaper; this is what runs where that could not be built, and what it is tested
against. `Tap` here is whichever there is.
"""

from __future__ import annotations

import importlib
import threading
from array import array
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any

import torch
from torch import nn

from talkerviz.trace.log import MARK, NO_TENSORS


class PythonTap:
    """The reference.

    Args:
        tensor: torch's Tensor, and
        parameter: Parameter: the two types that the C version reads without asking.
        below: what stood at `nn.Module.__call__` before: where calls go on.
        of_inputs: (args, kwargs) -> the number of their tensors, see `Signatures`.
        of_output: what a call returned -> the same.
        kind_of: the kind of a type, see `tensors.py`; for the C version.
        tracing: () -> whether torch.jit traces, when to look at a tensor would leave something in what it makes.
        entered: (module, args, kwargs) of a landmark about to be called -> the number of the mark that begins, or -1.
        left: (module) of a landmark that has returned or raised -> the same.
        failed: the type of an exception -> -1 less its number.
        started: () -> the number of the mark that a new thread begins with.
        full: (), called on a thread whose log holds `limit` events.
        stamp: (whether the call begins) called just outside the two times of a call, or None.
        timed: whether events hold times; -1 otherwise.
        limit: events after which `full` is called.
    """

    def __init__(
        self,
        tensor: type,
        parameter: type,
        below: Callable[..., Any],
        of_inputs: Callable[[tuple[Any, ...], Mapping[str, Any]], int],
        of_output: Callable[[Any], int],
        kind_of: Callable[[type], int],
        tracing: Callable[[], bool],
        entered: Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], int],
        left: Callable[[nn.Module], int],
        failed: Callable[[type[BaseException]], int],
        started: Callable[[], int],
        full: Callable[[], None],
        stamp: Callable[[bool], None] | None,
        timed: bool,
        limit: int,
    ) -> None:
        self._watched: dict[int, tuple[nn.Module | None, int, bool]] = {}
        self._logs: list[array[int]] = []
        self._of_thread = threading.local()
        self._started = started
        self._now = now = perf_counter_ns if timed else _no_time
        find, local = self._watched.get, self._of_thread

        def mark(log: array[int], number: int) -> None:
            if number >= 0:
                log.extend((MARK, number, now()))

        def leave(log: array[int], module: nn.Module, landmark: bool) -> None:
            if landmark:
                mark(log, left(module))
            if len(log) >= 3 * limit:
                full()

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            watched = find(id(self))
            if watched is None:
                return below(self, *args, **kwargs)
            _, number, landmark = watched
            log = local.log if hasattr(local, "log") else new_log()
            if landmark:
                mark(log, entered(self, args, kwargs))
            if number < 0:
                try:
                    return below(self, *args, **kwargs)
                finally:
                    leave(log, self, landmark)
            inputs = NO_TENSORS if tracing() else of_inputs(args, kwargs)
            if stamp is not None:
                stamp(True)
            # Ctrl-C may come between any two steps, and each beginning must have its end: hence the lengths.
            before, ending, time = len(log), None, None
            begun = False
            try:
                log.extend((number, inputs, now()))
                begun = True
                output = below(self, *args, **kwargs)
                time = now()
                if stamp is not None:
                    stamp(False)
                outputs = NO_TENSORS if tracing() else of_output(output)
                ending = len(log)
                log.extend((-1 - number, outputs, time))
            except BaseException as error:
                if (begun or len(log) > before) and (ending is None or len(log) == ending):
                    if time is None:
                        time = now()
                        if stamp is not None:
                            stamp(False)
                    log.extend((-1 - number, failed(type(error)), time))
                leave(log, self, landmark)
                raise
            leave(log, self, landmark)
            return output

        new_log = self._new_log
        # Between the pieces of a compiled region Dynamo must find the module's code as if there were none of this.
        for function in (call, mark, leave, self._new_log):
            torch._dynamo.eval_frame.skip_code(function.__code__)
        self.call = call

    def _new_log(self) -> array[int]:
        log = array("q", (MARK, self._started(), self._now()))
        self._of_thread.log, self._of_thread.number = log, len(self._logs)
        self._logs.append(log)
        return log

    def watch(self, module: nn.Module, number: int, landmark: bool, keep: bool) -> None:
        """Log the module's calls under a number from here on, and none of a landmark's under -1.

        What is not to be kept alive must be unwatched when it dies.
        """
        self._watched[id(module)] = (module if keep else None, number, landmark)

    def unwatch(self, identity: int) -> None:
        """Forget the module of this `id`."""
        self._watched.pop(identity, None)

    def put(self, what: int, tensors: int, time: int) -> None:
        """Add an event to this thread's log."""
        log = self._of_thread.log if hasattr(self._of_thread, "log") else self._new_log()
        log.extend((what, tensors, time))

    def take(self, thread: int) -> bytes:
        """A thread's events, which are let go."""
        log = self._logs[thread]
        taken = log[:]
        del log[: len(taken)]
        return taken.tobytes()

    def thread(self) -> int:
        """The number of this thread."""
        if not hasattr(self._of_thread, "log"):
            self._new_log()
        return int(self._of_thread.number)

    def threads(self) -> int:
        """How many threads there are."""
        return len(self._logs)

    def close(self) -> None:
        """Watch nothing any more."""
        self._watched.clear()


def _no_time() -> int:
    return -1


try:
    Tap: Any = importlib.import_module("talkerviz.recorder._tap").Tap
except ImportError:
    Tap = PythonTap
