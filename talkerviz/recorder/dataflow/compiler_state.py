"""Process-wide state of torch that dispatch modes touch: the compiler's stance, and flags of modes in force."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._python_dispatch as python_dispatch


class _EagerStance:
    """The compiler's stance `force_eager`, held for as long as any recording needs it.

    The stance is one for all threads, and counted, so that recordings may begin and end in any order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted = self._suspended = 0
        self._stance: Any = None

    def begin(self) -> None:
        with self._lock:
            self._wanted += 1
            if self._stance is None:
                self._stance = torch.compiler.set_stance("force_eager")

    def end(self) -> None:
        with self._lock:
            self._wanted -= 1
            self._reset_if_unused()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        with self._lock:
            self._suspended += 1
            if self._suspended == 1 and self._stance is not None:
                self._stance.__exit__(None, None, None)
        try:
            yield
        finally:
            with self._lock:
                self._suspended -= 1
                if not self._suspended and self._stance is not None:
                    self._stance.__enter__()
                self._reset_if_unused()

    def _reset_if_unused(self) -> None:
        if not (self._wanted or self._suspended) and self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None


class _ModeFlags:
    """Torch's flags of whether any dispatch mode is in force, restored after modes of several threads.

    The flags are one for all threads, and each mode restores the value that it read when it was entered. Modes of two
    threads that overlap would leave them set for ever, and torch and others would then take slower or other paths.
    """

    _NAMES = (
        "_is_in_torch_dispatch_mode",
        "_is_in_non_infra_torch_dispatch_mode",
        "_is_in_any_mode_without_ignore_compile_internals",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recordings = 0
        self._overlapped = False
        self._before: dict[str, bool] = {}

    def begin(self) -> None:
        with self._lock:
            if self._recordings:
                self._overlapped = True
            else:
                current = vars(python_dispatch)
                self._before = {name: current[name] for name in self._NAMES if name in current}
            self._recordings += 1

    def end(self) -> None:
        with self._lock:
            self._recordings -= 1
            if self._recordings or not self._overlapped:
                return
            self._overlapped = False
            vars(python_dispatch).update(self._before)
            if (internals := self._before.get(self._NAMES[2])) is not None:
                vars(python_dispatch)["set_is_in_mode_without_ignore_compile_internals"](internals)


eager_stance = _EagerStance()
mode_flags = _ModeFlags()
