"""User-defined phases: `with rec.phase(...)` blocks of a program."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import CodeType, FrameType

NO_PHASE = -1
_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class PhaseBlocks:
    """Open `with rec.phase(...)` blocks.

    A block sets a context variable, so each asyncio task and each thread has its own. A generator shares the context of
    its caller, and its block stays open while it is suspended: as long as a generator has one open, the current block
    is searched for on the stack, which holds running generators only.

    Args:
        changed: called after a block was opened or closed, with the function that finds the phase of the running code
            on its stack, or None if the context variable is enough.
    """

    def __init__(self, changed: Callable[[Callable[[], int] | None], None]) -> None:
        self.of_context: ContextVar[int] = ContextVar("phase", default=NO_PHASE)
        self._changed = changed
        # By `id` of the frame, with its code, as another frame may get the address of one that has returned.
        self._open: dict[int, list[tuple[CodeType, int]]] = {}
        self._in_generators = 0

    @contextmanager
    def block(self, number: int) -> Iterator[None]:
        """Give calls inside the phase of this number."""
        frame = _frame_of_block()
        in_generator = bool(frame.f_code.co_flags & _GENERATOR)
        kept = frame if in_generator else None  # a generator keeps its variables anyway
        key, entry = id(frame), (frame.f_code, number)
        del frame
        token = None if in_generator else self.of_context.set(number)
        self._open.setdefault(key, []).append(entry)
        self._in_generators += in_generator
        self._notify()
        try:
            yield
        finally:
            self._open[key].remove(entry)
            if not self._open[key]:
                del self._open[key]
            self._in_generators -= in_generator
            if token is not None:
                try:
                    self.of_context.reset(token)
                except ValueError:  # it ends in another context
                    self.of_context.set(NO_PHASE if token.old_value is Token.MISSING else token.old_value)
            self._notify()
            del kept

    def find(self) -> int:
        """Return the number of the running code's phase, by its stack; `NO_PHASE` for none."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            blocks = self._open.get(id(frame))
            if blocks and blocks[-1][0] is frame.f_code:
                return blocks[-1][1]
            frame = frame.f_back
        return self.of_context.get()

    def _notify(self) -> None:
        self._changed(self.find if self._in_generators else None)


def _frame_of_block() -> FrameType:
    """Return the frame whose `with` opens a block; for a decorated function that of contextlib's wrapper."""
    frame = sys._getframe(2)
    while (
        frame.f_globals.get("__name__") in ("contextlib", "talkerviz.recorder.recording") and frame.f_back is not None
    ):
        if frame.f_code.co_name == "inner":
            break
        frame = frame.f_back
    return frame
