"""The two ways in: a tap at `nn.Module.__call__`, in C, and torch's forward hooks.

While a recording goes on through the tap, it stands in for `nn.Module.__call__`. Nothing is put on the modules
themselves: not a hook, which would send each call down torch's slow path and cost more than a microsecond before it
does a thing, nor an attribute, which copies made during the run would carry to other modules. A module that is not
watched goes straight on. Around a watched one the way on is what it was, so its own hooks, and a `forward` that
someone has replaced, work as ever; keyword arguments arrive as they are, and every way out is seen.

Hooks are what anyone may put on a module, know and trust. They do the same through the same log, so each is a check of
the other. They are the way in where the tap could not be built, and where nothing may be patched.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.recorder.python_events import Callbacks, Contexts, PythonEvents
from talkerviz.recorder.tensor_signatures import TensorKinds, kind_of, unpack

WAYS = ("auto", "tap", "hooks")
"""What `via` may be."""
HOOKS_COST = "10 to 25 µs a call, where the tap takes 1 to 7"

try:
    Tap: Any = importlib.import_module("talkerviz.recorder._tap").Tap
    why_not = ""
except ImportError as error:
    Tap, why_not = None, str(error)


def choose_way(via: str) -> str:
    """The way in that `via` asks for: `tap` or `hooks`.

    Raises:
        ValueError: unknown, or the tap was asked for and could not be built.
    """
    if via not in WAYS:
        raise ValueError(f"unknown via {via!r}: choose from {', '.join(WAYS)}")
    if via == "tap" and Tap is None:
        raise ValueError(f"via 'tap': it is not built here ({why_not}); use 'hooks', or install with a C compiler")
    if via == "auto" and Tap is None:
        _say_that_it_is_slow()
    return "hooks" if via == "hooks" or Tap is None else "tap"


@functools.cache
def _say_that_it_is_slow() -> None:
    said = f"the compiled tap could not be loaded ({why_not}): recording through forward hooks, {HOOKS_COST}"
    warnings.warn(f"{said}; reinstall talkerviz with a C compiler", RuntimeWarning, stacklevel=4)


def make_events(
    native: Any,
    below: Callable[..., Any] | None,
    names: dict[str, int],
    kinds: TensorKinds,
    callbacks: Callbacks,
    contexts: Contexts,
    start: int = 0,
    frame: int = 0,
    timed: bool = True,
    limit: int = 1 << 15,
) -> Any:
    """The log that calls go to.

    Args:
        native: the compiled class, or None to log in Python.
        below: what stood at `nn.Module.__call__` before: where calls go on; None for hooks.
        names: names of places in containers -> their numbers; new ones are added.
        kinds: dtypes and devices.
        callbacks: what it tells and asks.
        contexts: what goes with the context of a call.
        start: the number of the phase that the run begins with.
        frame: the number of the phase of frames that are counted here, those of `FRAME_LANDMARK`.
        timed: whether events hold times; -1 otherwise.
        limit: events after which `full` is called.
    """
    told = {name: function and not_compiled(function) for name, function in vars(callbacks).items()}
    common: dict[str, Any] = {"names": names, "start": start, "frame": frame, "timed": timed, "limit": limit}
    if native is None:
        return PythonEvents(kinds=kinds, callbacks=Callbacks(**told), contexts=contexts, **common)
    return native(
        tensor=Tensor,
        parameter=nn.Parameter,
        kind_of=not_compiled(kind_of),
        unpack=not_compiled(unpack),
        tensor_row=not_compiled(kinds.row),
        tensor_kind=not_compiled(kinds.number),
        below=below,
        **told,
        **vars(contexts),
        **common,
    )


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, left alone by Dynamo: between the pieces of a compiled region it looks at all Python that runs.

    `torch.compiler.disable` does the same for 15 microseconds a call.
    """
    set_eval_frame = torch._C._dynamo.eval_frame.set_eval_frame

    def call(*args: Any) -> Any:
        before = set_eval_frame(None)
        try:
            return function(*args)
        finally:
            set_eval_frame(before)

    torch._dynamo.eval_frame.skip_code(call.__code__)
    return call
