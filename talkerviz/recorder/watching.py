"""Modes of torch, put in force and taken out again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


class Watching:
    """What watches functions or operators on this thread.

    Compiled code runs as it was written meanwhile: it would meet the modes, and from then on be left uncompiled
    wherever it is used.
    """

    def __init__(self, *modes: AbstractContextManager[Any]) -> None:
        self._modes = modes
        self._stance: Any = None

    def begin(self) -> None:
        """Put the modes in force, the last innermost."""
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        for mode in self._modes:
            mode.__enter__()

    def end(self) -> None:
        """Undo what `begin` did of that: Ctrl-C may have come in either."""
        functions = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        for mode in reversed(self._modes):
            if mode in (*functions, *_get_current_dispatch_mode_stack()):
                mode.__exit__(None, None, None)
        if self._stance is not None:
            stance, self._stance = self._stance, None
            stance.__exit__(None, None, None)
