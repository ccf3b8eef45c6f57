"""Forward hooks on every module of a model, as a way in."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from talkerviz.recorder.method_patch import allow_frames, modules_are_hidden

_FRAMES_A_CALL = 1  # torch's, where a module has hooks
_FRAMES_OF_HOOKS = 16  # of a hook, and what it calls
Begin = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
End = Callable[[nn.Module, Any], None]
Fail = Callable[[nn.Module, type[BaseException]], None]


class ForwardHooks:
    """A pre-hook and a hook on each module, which tell a log of both ends of its calls.

    They are the outermost of a module's hooks, so that what others take counts as the module's, as it does for the tap.

    Args:
        begin: (module, args, kwargs).
        end: (module, output).
        fail: (module, type of the exception).
    """

    def __init__(self, begin: Begin, end: End, fail: Fail) -> None:
        self._begin, self._end, self._fail = begin, end, fail
        self._of_thread = threading.local()
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        self._frames = 0  # by which the recursion limit is raised
        self._allow_frames(_FRAMES_OF_HOOKS)

    def _allow_frames(self, frames: int) -> None:
        with self._lock:
            allow_frames(frames)
            self._frames += frames

    def add(self, module: nn.Module) -> None:
        """Put the hooks on a module.

        Raises:
            RuntimeError: it takes none, as a scripted one.
        """
        self._handles.append(module.register_forward_pre_hook(_Before(self, module), prepend=True, with_kwargs=True))
        self._handles.append(module.register_forward_hook(_After(self, module), with_kwargs=True, always_call=True))

    def remove(self) -> None:
        """Take the hooks off again."""
        while self._handles:
            self._handles.pop().remove()
        self._allow_frames(-self._frames)  # of calls as well that go on, or that Ctrl-C ended

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is about to be called."""
        handled = getattr(self._of_thread, "handled", None)
        if handled is None:
            handled = self._of_thread.handled = []
        self._allow_frames(_FRAMES_A_CALL)
        # An exception that the code around the call handles is none of the call's.
        handled.append((id(module), sys.exc_info()[1]))
        self._begin(module, args, kwargs)

    def end(self, module: nn.Module, output: Any) -> None:
        """A module has been called; where it raised, torch gives None as its output and handles the exception."""
        handled = getattr(self._of_thread, "handled", [])
        if not any(of == id(module) for of, _ in handled):
            return  # it was called before there were hooks
        while True:  # after a call that Ctrl-C ended no hook was called
            of, around = handled.pop()
            self._allow_frames(-_FRAMES_A_CALL)
            if of == id(module):
                break
        error = sys.exc_info()[1] if output is None else None
        if error is None or error is around:
            self._end(module, output)
        else:
            self._fail(module, type(error))


class _Hook:
    def __init__(self, hooks: ForwardHooks, module: nn.Module) -> None:
        self._hooks, self._module = hooks, module

    def _counted_as(self, module: nn.Module) -> nn.Module:
        # Replicas of DataParallel share the hooks of what they are of; a copy is another module.
        return self._module if getattr(module, "_is_replica", False) else module

    def __deepcopy__(self, memo: Any) -> _Hook:
        return self  # it says nothing of a copy, whose module is not watched

    def __reduce__(self) -> Any:
        return _nothing, ()  # a model that is pickled takes no recording along


class _Before(_Hook):
    # Another thread may call a hook before torch has noted that it takes keyword arguments.
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if not (torch.compiler.is_compiling() or modules_are_hidden()):  # compiled code is as it would be without
            self._hooks.begin(self._counted_as(module), args, kwargs or {})


class _After(_Hook):
    def __call__(self, module: nn.Module, *args_and_output: Any) -> None:
        if not (torch.compiler.is_compiling() or modules_are_hidden()):
            self._hooks.end(self._counted_as(module), args_and_output[-1])


class _Nothing:
    def __call__(self, *args: Any) -> None:
        """Do nothing."""


def _nothing() -> _Nothing:
    return _Nothing()


# Dynamo, at work between the pieces of a compiled region, would take the hooks themselves for code to compile.
for _hook in (_Before, _After):
    torch._dynamo.eval_frame.skip_code(_hook.__call__.__code__)
