"""Dispatch and function modes of instruments, entered and left without changing the run."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch._higher_order_ops.utils as hop_utils
import torch.nn.attention.flex_attention as flex_attention
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from talkerviz.recorder.dataflow.compiler_state import eager_stance, mode_flags
from talkerviz.recorder.method_patch import allow_frames, hidden_modules, patch_method

_of_thread = threading.local()
_MODE_FRAMES = 64  # Python frames that modes and the functions they call may add to the run's own


class OperatorMode(TorchDispatchMode):
    """Dispatch mode of an instrument, which must not change the run's results.

    Args:
        fault: called with an exception of the instrument's own bookkeeping.
    """

    # Torch raises if a higher-order operator meets a mode without this support.
    supports_higher_order_operators = True

    def __init__(self, fault: Callable[[Exception], None]) -> None:
        super().__init__()
        self._fault = fault


def run_higher_order(func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a higher-order operator, such as `cond` or `flex_attention`, as one operator.

    Dynamo has traced the functions in its arguments, so no module is called in them. If it has not, because of modes of
    others, module calls in them are not recorded either.
    """
    with hidden_modules():
        return func(*args, **kwargs)


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is of torch's own class, with one size for each dimension."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_nested


def _suspend(mode: AbstractContextManager[Any]) -> int | None:
    """Leave a mode and return its index in its stack; None if it was not in force.

    A dispatch mode behind another one is left in force: code under that one is left uncompiled in any case.
    """
    functions, operators = _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()
    if mode in functions:
        index = functions.index(mode)
        inner = [_pop_mode() for _ in functions[index + 1 :]]
        mode.__exit__(None, None, None)
        for inner_mode in reversed(inner):
            _push_mode(inner_mode)
        return int(index)
    if mode in operators[-1:]:
        mode.__exit__(None, None, None)
        return len(operators) - 1
    return None


def _resume(mode: AbstractContextManager[Any], index: int) -> None:
    if not isinstance(mode, TorchFunctionMode):
        mode.__enter__()
        return
    inner = [_pop_mode() for _ in _get_current_function_mode_stack()[index:]]
    mode.__enter__()
    for inner_mode in reversed(inner):
        _push_mode(inner_mode)


@functools.lru_cache(maxsize=16)
def _backend_under_modes(backend: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    """Make a torch.compile backend whose compiled code runs under the modes that were suspended while it compiled.

    It is cached for all recordings, since Dynamo keeps compiled code for each backend.
    """

    def compile_graph(graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled = backend(graph, inputs)

        def run(*args: Any) -> Any:
            with ExitStack() as stack:
                for mode in getattr(_of_thread, "suspended", ()):
                    stack.enter_context(mode)
                return compiled(*args)

        return run

    return compile_graph


class ActiveModes:
    """Modes of one instrument, in force on this thread from `begin` to `end`.

    Compiled code runs eagerly meanwhile: it would meet the modes, and from then on be left uncompiled wherever it is
    used. Only code that torch itself compiles to run a higher-order operator such as `cond` is compiled all the same.

    Args:
        modes: the modes, innermost last.
    """

    def __init__(self, *modes: AbstractContextManager[Any]) -> None:
        self._modes = modes
        self._began = False
        self._undo: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Enter the modes."""
        self._began = True
        mode_flags.begin()
        allow_frames(_MODE_FRAMES)
        eager_stance.begin()
        for module in (hop_utils, flex_attention):
            if hasattr(module, "setup_compilation_env"):  # since torch 2.9
                patch_method(module, "setup_compilation_env", self._make_environment, self._undo)
        for mode in self._modes:
            mode.__enter__()

    def end(self) -> None:
        """Undo the steps of `begin` that were done: Ctrl-C may have come in either function."""
        for mode in reversed(self._modes):
            if mode in (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()):
                mode.__exit__(None, None, None)
        while self._undo:
            self._undo.pop()()
        if self._began:
            self._began = False
            mode_flags.end()
            eager_stance.end()
            allow_frames(-_MODE_FRAMES)

    def _make_environment(self, original: Callable[[], AbstractContextManager[Any]]) -> Callable[[], Any]:
        """Wrap the context in which torch compiles the functions in a higher-order operator's arguments."""

        @contextmanager
        def environment() -> Iterator[Any]:
            # Under modes the functions would stay uncompiled, and gradients of their closures would be lost.
            suspended = [(mode, index) for mode in reversed(self._modes) if (index := _suspend(mode)) is not None]
            outer = getattr(_of_thread, "suspended", ())
            _of_thread.suspended = [mode for mode, _ in reversed(suspended)]
            try:
                with eager_stance.suspended(), original() as backend:
                    yield _backend_under_modes(backend)
            finally:
                for mode, index in reversed(suspended):
                    _resume(mode, index)
                _of_thread.suspended = outer

        return environment
