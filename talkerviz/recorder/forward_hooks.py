"""Recording through forward hooks on every module of a model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from talkerviz.recorder.method_patch import allow_frames, modules_are_hidden

_FRAMES_PER_CALL = 1  # torch's own extra Python frame for a module that has hooks
_HOOK_FRAMES = 16  # Python frames of a hook and the functions that it calls
Begin = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
End = Callable[[nn.Module, Any], None]
Fail = Callable[[nn.Module, type[BaseException]], None]


class ForwardHooks:
    """A pre-hook and a hook on each module, which log the begin and the end of its calls.

    They are the outermost of a module's hooks, so that time in other hooks counts as the module's, as with the tap.

    Args:
        begin: called before each call with (module, args, kwargs).
        end: called after a call that returned with (module, output).
        fail: called after a call that raised with (module, type of the exception).
    """

    def __init__(self, begin: Begin, end: End, fail: Fail) -> None:
        self._begin, self._end, self._fail = begin, end, fail
        self._of_thread = threading.local()
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        self._frames = 0  # by which the recursion limit is raised
        self._allow_frames(_HOOK_FRAMES)

    def _allow_frames(self, frames: int) -> None:
        with self._lock:
            allow_frames(frames)
            self._frames += frames

    def add(self, module: nn.Module) -> None:
        """Register the hooks on a module.

        Raises:
            RuntimeError: the module takes none, such as a scripted one.
        """
        self._handles.append(module.register_forward_pre_hook(_Before(self, module), prepend=True, with_kwargs=True))
        self._handles.append(module.register_forward_hook(_After(self, module), with_kwargs=True, always_call=True))

    def remove(self) -> None:
        """Remove all hooks."""
        while self._handles:
            self._handles.pop().remove()
        self._allow_frames(-self._frames)  # also those of calls that go on, or that Ctrl-C ended

    def inside(self) -> bool:
        """Return whether this thread is inside a call with these hooks."""
        return bool(getattr(self._of_thread, "handled", None))

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Log the begin of a module's call."""
        handled = getattr(self._of_thread, "handled", None)
        if handled is None:
            handled = self._of_thread.handled = []
        self._allow_frames(_FRAMES_PER_CALL)
        # An exception that is being handled around the call is not raised by the call.
        handled.append((id(module), sys.exc_info()[1]))
        self._begin(module, args, kwargs)

    def end(self, module: nn.Module, output: Any) -> None:
        """Log the end of a module's call; for one that raised, torch passes None and handles the exception."""
        handled = getattr(self._of_thread, "handled", [])
        if not any(identity == id(module) for identity, _ in handled):
            return  # the call began before the hooks were registered
        while True:  # calls that Ctrl-C ended are still listed: their hooks were not called
            identity, outer_error = handled.pop()
            self._allow_frames(-_FRAMES_PER_CALL)
            if identity == id(module):
                break
        error = sys.exc_info()[1] if output is None else None
        if error is None or error is outer_error:
            self._end(module, output)
        else:
            self._fail(module, type(error))


class _Hook:
    def __init__(self, hooks: ForwardHooks, module: nn.Module) -> None:
        self._hooks, self._module = hooks, module

    def _recorded_module(self, module: nn.Module) -> nn.Module:
        # Replicas of DataParallel share the hooks of the module that they replicate; a copy is another module.
        return self._module if getattr(module, "_is_replica", False) else module

    def __deepcopy__(self, memo: Any) -> _Hook:
        return self  # it logs nothing for a copied module, which is not watched

    def __reduce__(self) -> Any:
        return _no_op_hook, ()  # a pickled model takes no recording along


class _Before(_Hook):
    # Another thread may call a hook before torch has noted that it takes keyword arguments.
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if not (torch.compiler.is_compiling() or modules_are_hidden()):  # hooks must leave compiled code unchanged
            self._hooks.begin(self._recorded_module(module), args, kwargs or {})


class _After(_Hook):
    def __call__(self, module: nn.Module, *args_and_output: Any) -> None:
        if not (torch.compiler.is_compiling() or modules_are_hidden()):
            self._hooks.end(self._recorded_module(module), args_and_output[-1])


class _NoOpHook:
    def __call__(self, *args: Any) -> None:
        """Do nothing."""


def _no_op_hook() -> _NoOpHook:
    return _NoOpHook()


# Between the pieces of a compiled region Dynamo would compile the hooks themselves.
for _hook in (_Before, _After):
    torch._dynamo.eval_frame.skip_code(_hook.__call__.__code__)
