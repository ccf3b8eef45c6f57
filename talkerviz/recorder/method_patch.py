"""Reversible patches of methods and functions, and the recursion limit that the wrappers' frames need.

Recordings may be nested or run side by side in several threads, and end in any order. All patches are therefore kept
in a list, and a patch that ends while a later one still wraps it is taken out once it is the outermost. Ctrl-C may come
at any moment: removing a patch twice, or one that is not fully installed, does no harm.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

Method = Callable[..., Any]

_OWN_CALL = "unpatched_nn_module_call"
_lock = threading.Lock()
_patches: list[MethodPatch] = []
_of_thread = threading.local()

_limit_lock = threading.RLock()
_extra_frames = 0  # by which the recursion limit is raised
_own_limit: int | None = None  # the limit without a recording
_raised_limit: int | None = None  # the limit last set by `allow_frames`


@dataclass(eq=False)
class MethodPatch:
    """One replacement of a method.

    Attributes:
        owner: the class, or the module of a function.
        name: the method's name.
        wrapper: the replacement.
        original: the method that it replaced, which may be another patch's wrapper.
        removed: whether `remove` was called.
    """

    owner: type | ModuleType
    name: str
    wrapper: Method
    original: Method
    removed: bool = False

    def remove(self) -> None:
        """Restore the original, at once or when all patches around this one are removed too."""
        with _lock:
            self.removed = True
            while (
                outermost := next((patch for patch in _patches if patch.removed and patch._is_outermost()), None)
            ) is not None:
                outermost._install(outermost.original)
            dynamo = _dynamo()
            if dynamo.get(_OWN_CALL) is self.wrapper:
                dynamo[_OWN_CALL] = self.original
            kept: list[MethodPatch] = []
            for patch in reversed(_patches):
                if not patch.removed or any(outer.original is patch.wrapper for outer in kept):
                    kept.append(patch)
            _patches[:] = reversed(kept)

    def _is_outermost(self) -> bool:
        return inspect.getattr_static(self.owner, self.name) is self.wrapper

    def _install(self, method: Method) -> None:
        # Code compiled during a recording must equal code compiled without one. Dynamo inlines `forward` only where a
        # module's `__call__` is the one that it keeps as torch's own.
        dynamo = _dynamo()
        if self.owner is nn.Module and self.name == "__call__" and dynamo.get(_OWN_CALL) is nn.Module.__call__:
            dynamo[_OWN_CALL] = method
        setattr(self.owner, self.name, method)


def _dynamo() -> dict[str, Any]:
    # Imported on the first recording, since it takes a second, and before any patch: Dynamo keeps the
    # nn.Module.__call__ that it finds as torch's own.
    import torch._dynamo.variables.nn_module as modules

    return vars(modules)


def patch_method(
    owner: type | ModuleType, name: str, make_wrapper: Callable[[Method], Method], undo: list[Callable[[], None]]
) -> None:
    """Replace a class's method, or a module's function, by `make_wrapper(original)`.

    Args:
        owner: the class or module.
        name: the method or function.
        make_wrapper: function from the original to its replacement.
        undo: list that gets the patch's `remove`, before the patch is installed.
    """
    _dynamo()
    with _lock:
        # For a class made in C++ `getattr` unwraps the method, and the unwrapped one put back would not be bound.
        original = inspect.getattr_static(owner, name)
        patch = MethodPatch(owner, name, make_wrapper(original), original)
        undo.append(patch.remove)
        _patches.append(patch)
        patch._install(patch.wrapper)


def modules_are_hidden() -> bool:
    """Return whether this thread's module calls are left out of every recording."""
    return getattr(_of_thread, "hidden", 0) > 0


@contextmanager
def hidden_modules() -> Iterator[None]:
    """Leave this thread's module calls inside the block out of every recording."""
    undo: list[Callable[[], None]] = []
    _of_thread.hidden = getattr(_of_thread, "hidden", 0) + 1
    try:
        patch_method(nn.Module, "__call__", _without_recordings, undo)
        yield
    finally:
        _of_thread.hidden -= 1
        for remove in undo:
            remove()


def _without_recordings(original: Method) -> Method:
    """Return a wrapper that calls the `nn.Module.__call__` from before the first recording."""
    first = next(
        (patch.original for patch in _patches if patch.owner is nn.Module and patch.name == "__call__"), original
    )

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (first if modules_are_hidden() else original)(self, *args, **kwargs)

    return call


def allow_frames(frames: int) -> None:
    """Raise Python's recursion limit by a number of frames, or lower it if the number is negative.

    The limit is one for all threads. A limit that the run sets meanwhile replaces the one to return to.

    Args:
        frames: number of the recorder's Python frames that are added to the stack, or leave it.
    """
    global _extra_frames, _own_limit, _raised_limit
    with _limit_lock:
        limit = sys.getrecursionlimit()
        if _own_limit is None or limit != _raised_limit:
            _own_limit = limit
        wanted = _own_limit + _extra_frames + frames
        try:
            sys.setrecursionlimit(wanted)
        except RecursionError:
            if frames > 0:
                raise
            wanted = limit  # the stack is now too deep for a limit that the run has lowered
        _extra_frames += frames
        _raised_limit = wanted
        if not _extra_frames and wanted == _own_limit:
            _own_limit = None
