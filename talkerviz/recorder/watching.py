"""Modes of torch that watch functions and operators, put in force and taken out again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from talkerviz.recorder.patch import hidden_modules

OWN_FRAMES = 150
"""Python frames that a mode and what it calls may take on top of those of the run."""


class OperatorMode(TorchDispatchMode):
    """Dispatch mode of an instrument, which must not change what the run computes.

    Args:
        fault: called with an exception of the instrument's own bookkeeping.
    """

    # Where an operator that takes functions met a mode that does not support it, torch would raise.
    supports_higher_order_operators = True

    def __init__(self, fault: Callable[[Exception], None]) -> None:
        super().__init__()
        self._fault = fault


def run_higher_order(func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `cond`, `flex_attention` and the like, as one operator.

    Without a mode in force Dynamo takes the functions that they are given apart; no module is called in those.
    """
    with hidden_modules():
        return func(*args, **kwargs)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is torch's own, with one size for each dimension."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_nested


class RecursionMargin:
    """Raises Python's recursion limit by the frames that recording adds, so that what fits without it still fits."""

    def __init__(self) -> None:
        self._limits: list[tuple[int, int]] = []

    def widen(self, frames: int) -> None:
        """Allow so many more frames."""
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(before + frames)
        self._limits.append((before, before + frames))

    def narrow(self) -> None:
        """Undo the last `widen`, unless the run has set a limit of its own since."""
        before, raised = self._limits.pop()
        if sys.getrecursionlimit() == raised:
            with suppress(RecursionError):
                sys.setrecursionlimit(before)


class Watching:
    """What watches functions or operators on this thread.

    Compiled code runs as it was written meanwhile: it would meet the modes, and from then on be left uncompiled
    wherever it is used.
    """

    def __init__(self, *modes: AbstractContextManager[Any]) -> None:
        self._modes = modes
        self._stance: Any = None
        self._margin = RecursionMargin()
        self._is_wide = False

    def begin(self) -> None:
        """Put the modes in force, the last innermost."""
        self._margin.widen(OWN_FRAMES)
        self._is_wide = True
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        for mode in self._modes:
            mode.__enter__()

    def end(self) -> None:
        """Undo what `begin` did of that: Ctrl-C may have come in either."""
        functions = _get_current_function_mode_stack()
        for mode in reversed(self._modes):
            if mode in (*functions, *_get_current_dispatch_mode_stack()):
                mode.__exit__(None, None, None)
        if self._stance is not None:
            stance, self._stance = self._stance, None
            stance.__exit__(None, None, None)
        if self._is_wide:
            self._is_wide = False
            self._margin.narrow()
