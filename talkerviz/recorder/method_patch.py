"""Stand in for a method of a class, and step back again.

Recordings may be nested, or go on side by side in several threads, and end in any order. So what stands in is kept in
a list, and one that ends while another still stands in front of it is taken out when it comes to the front. Ctrl-C may
come at any moment: to step back twice, or from where one has not quite stepped in, does no harm.
"""

from __future__ import annotations

import inspect
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
_all: list[StandIn] = []
_of_thread = threading.local()


@dataclass(eq=False)
class StandIn:
    """One replacement of a method.

    Attributes:
        owner: the class, or the module of a function.
        name: the method's name.
        method: what stands in.
        below: what stood there before.
        over: whether it has stepped back.
    """

    owner: type | ModuleType
    name: str
    method: Method
    below: Method
    over: bool = False

    def step_back(self) -> None:
        """Undo it, at once or when what stands in front has stepped back too."""
        with _lock:
            self.over = True
            while (front := next((one for one in _all if one.over and one._is_in_front()), None)) is not None:
                front._put(front.below)
            dynamo = _dynamo()
            if dynamo.get(_OWN_CALL) is self.method:
                dynamo[_OWN_CALL] = self.below
            kept: list[StandIn] = []
            for one in reversed(_all):
                if not one.over or any(in_front.below is one.method for in_front in kept):
                    kept.append(one)
            _all[:] = reversed(kept)

    def _is_in_front(self) -> bool:
        return inspect.getattr_static(self.owner, self.name) is self.method

    def _put(self, method: Method) -> None:
        # What is compiled during a recording must be what is compiled without one. Dynamo goes straight to `forward`
        # where a module is called by what it takes to be torch's own `__call__`.
        dynamo = _dynamo()
        if self.owner is nn.Module and self.name == "__call__" and dynamo.get(_OWN_CALL) is nn.Module.__call__:
            dynamo[_OWN_CALL] = method
        setattr(self.owner, self.name, method)


def _dynamo() -> dict[str, Any]:
    # Imported by whoever records, as it takes a second, and before anything is replaced: it keeps what it finds at
    # nn.Module.__call__ as torch's own.
    import torch._dynamo.variables.nn_module as modules

    return vars(modules)


def step_in(
    owner: type | ModuleType, name: str, make: Callable[[Method], Method], undo: list[Callable[[], None]]
) -> None:
    """Replace a class's method, or a module's function, by `make(what stands there)`.

    Args:
        owner: the class or module.
        name: the method or function.
        make: makes the replacement of what stands there.
        undo: gets what undoes it, before it is done.
    """
    _dynamo()
    with _lock:
        # Of a class made in C++ `getattr` unwraps it, and that put back would not be bound any more.
        below = inspect.getattr_static(owner, name)
        one = StandIn(owner, name, make(below), below)
        undo.append(one.step_back)
        _all.append(one)
        one._put(one.method)


def modules_are_hidden() -> bool:
    """Whether this thread's module calls are left out of every recording."""
    return getattr(_of_thread, "hidden", 0) > 0


@contextmanager
def hidden_modules() -> Iterator[None]:
    """Leave the module calls that this thread makes inside the block out of every recording."""
    undo: list[Callable[[], None]] = []
    _of_thread.hidden = getattr(_of_thread, "hidden", 0) + 1
    try:
        step_in(nn.Module, "__call__", _without_recordings, undo)
        yield
    finally:
        _of_thread.hidden -= 1
        for step_back in undo:
            step_back()


def _without_recordings(below: Method) -> Method:
    """Call what was at `nn.Module.__call__` before the first recording."""
    first = next((one.below for one in _all if one.owner is nn.Module and one.name == "__call__"), below)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (first if modules_are_hidden() else below)(self, *args, **kwargs)

    return call
