"""Modes of torch that watch functions and operators, put in force and taken out again."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
import torch._higher_order_ops.utils as hop_utils
import torch.nn.attention.flex_attention as flex_attention
import torch.utils._python_dispatch as python_dispatch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from talkerviz.recorder.method_patch import allow_frames, hidden_modules, patch_method

_of_thread = threading.local()
_FRAMES_OF_MODES = 64  # Python frames that modes and what they call may take on top of those of the run


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

    Dynamo has taken the functions that they are given apart, so that no module is called in those. Where it has not,
    for the modes of others, none is recorded either.
    """
    with hidden_modules():
        return func(*args, **kwargs)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is torch's own, with one size for each dimension."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_nested


def _take_out(mode: AbstractContextManager[Any]) -> int | None:
    """Take a mode out of force; gives its place among those of its kind, None if it was not in force.

    One of operators stays behind another's: code that runs under that one is left uncompiled in any case.
    """
    functions, operators = _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()
    if mode in functions:
        place = functions.index(mode)
        inner = [_pop_mode() for _ in functions[place + 1 :]]
        mode.__exit__(None, None, None)
        for one in reversed(inner):
            _push_mode(one)
        return int(place)
    if mode in operators[-1:]:
        mode.__exit__(None, None, None)
        return len(operators) - 1
    return None


def _put_back(mode: AbstractContextManager[Any], place: int) -> None:
    if not isinstance(mode, TorchFunctionMode):
        mode.__enter__()
        return
    inner = [_pop_mode() for _ in _get_current_function_mode_stack()[place:]]
    mode.__enter__()
    for one in reversed(inner):
        _push_mode(one)


@functools.lru_cache(maxsize=16)
def _watched(backend: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    """Make a backend of torch.compile of which the code meets the modes that were taken out of force.

    It is one for all recordings: Dynamo keeps code by its backend, and each with it.
    """

    def compile_graph(graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled = backend(graph, inputs)

        def run(*args: Any) -> Any:
            with ExitStack() as stack:
                for mode in getattr(_of_thread, "taken", ()):
                    stack.enter_context(mode)
                return compiled(*args)

        return run

    return compile_graph


class _EagerStance:
    """The compiler's stance that runs compiled code as it was written, for as long as any recording wants it.

    It is that of all threads, so that recordings may begin and end in any order.
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
            self._settle()

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
                self._settle()

    def _settle(self) -> None:
        if not (self._wanted or self._suspended) and self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None


_eager = _EagerStance()


class _ModeFlags:
    """Torch's notes of whether any dispatch mode is in force: one for all threads, each mode puts back what it found.

    Modes of two threads that overlap leave them set for ever, and torch and others then take slower or other ways.
    """

    _NAMES = (
        "_is_in_torch_dispatch_mode",
        "_is_in_non_infra_torch_dispatch_mode",
        "_is_in_any_mode_without_ignore_compile_internals",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watching = 0
        self._overlapped = False
        self._before: dict[str, bool] = {}

    def begin(self) -> None:
        with self._lock:
            if self._watching:
                self._overlapped = True
            else:
                noted = vars(python_dispatch)
                self._before = {name: noted[name] for name in self._NAMES if name in noted}
            self._watching += 1

    def end(self) -> None:
        with self._lock:
            self._watching -= 1
            if self._watching or not self._overlapped:
                return
            self._overlapped = False
            vars(python_dispatch).update(self._before)
            if (internals := self._before.get(self._NAMES[2])) is not None:
                vars(python_dispatch)["set_is_in_mode_without_ignore_compile_internals"](internals)


_flags = _ModeFlags()


class Watching:
    """What watches functions or operators on this thread.

    Compiled code runs as it was written meanwhile: it would meet the modes, and from then on be left uncompiled
    wherever it is used. Only what torch itself compiles to run an operator such as `cond` is compiled all the same.

    Args:
        modes: what is put in force, the last innermost.
    """

    def __init__(self, *modes: AbstractContextManager[Any]) -> None:
        self._modes = modes
        self._began = False
        self._undo: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Put the modes in force."""
        self._began = True
        _flags.begin()
        allow_frames(_FRAMES_OF_MODES)
        _eager.begin()
        for module in (hop_utils, flex_attention):
            if hasattr(module, "setup_compilation_env"):  # since torch 2.9
                patch_method(module, "setup_compilation_env", self._make_environment, self._undo)
        for mode in self._modes:
            mode.__enter__()

    def end(self) -> None:
        """Undo what `begin` did of that: Ctrl-C may have come in either."""
        for mode in reversed(self._modes):
            if mode in (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()):
                mode.__exit__(None, None, None)
        while self._undo:
            self._undo.pop()()
        if self._began:
            self._began = False
            _flags.end()
            _eager.end()
            allow_frames(-_FRAMES_OF_MODES)

    def _make_environment(self, below: Callable[[], AbstractContextManager[Any]]) -> Callable[[], Any]:
        """Make what stands in for the context in which torch compiles the functions that an operator is given."""

        @contextmanager
        def environment() -> Iterator[Any]:
            # Modes would have it left uncompiled: gradients of what the functions close over would be lost.
            places = [(mode, place) for mode in reversed(self._modes) if (place := _take_out(mode)) is not None]
            outer = getattr(_of_thread, "taken", ())
            _of_thread.taken = [mode for mode, _ in reversed(places)]
            try:
                with _eager.suspended(), below() as backend:
                    yield _watched(backend)
            finally:
                for mode, place in reversed(places):
                    _put_back(mode, place)
                _of_thread.taken = outer

        return environment
