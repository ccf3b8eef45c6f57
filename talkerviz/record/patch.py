"""Stand in for a method of a class, and step back again.

Recordings may be nested, or go on side by side in several threads, and end in any order. One that ends while another
still stands in front of it becomes a door that is open, and goes when it comes to the front.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

# torch._dynamo is imported before anything is replaced: it keeps what it finds at nn.Module.__call__ as torch's own.
import torch._dynamo.variables.nn_module
from torch import nn

Method = Callable[..., Any]

_dynamo = torch._dynamo.variables.nn_module
_lock = threading.Lock()
_ended: list[tuple[type, str, Method, Method]] = []  # class, name, what stood in, what stood there before


def step_in(owner: type, name: str, make: Callable[[Method], Method]) -> Callable[[], None]:
    """Replace a class's method by `make(what stands there)`; gives what undoes it."""
    with _lock:
        below = getattr(owner, name)
        method = make(below)
        _replace(owner, name, method)

    def step_back() -> None:
        with _lock:
            _ended.append((owner, name, method, below))
            while (front := next((e for e in _ended if getattr(e[0], e[1]) is e[2]), None)) is not None:
                _ended.remove(front)
                _replace(front[0], front[1], front[3])

    return step_back


def _replace(owner: type, name: str, method: Method) -> None:
    # What is compiled during a recording must be what is compiled without one. Dynamo goes straight to `forward` where
    # a module is called by what it takes to be torch's own `__call__`.
    called = owner is nn.Module and name == "__call__"
    if called and vars(_dynamo).get("unpatched_nn_module_call") is nn.Module.__call__:
        vars(_dynamo)["unpatched_nn_module_call"] = method
    setattr(owner, name, method)
