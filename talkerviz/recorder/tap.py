"""Event log behind two ways of recording calls: a tap at `nn.Module.__call__`, in C, and torch's forward hooks.

During a recording through the tap, the tap replaces `nn.Module.__call__`. Modules themselves stay unchanged: a hook
would send each call down torch's slow path, which costs more than a microsecond by itself, and an attribute would be
copied to other modules with copies made during the run. A call of an unwatched module goes straight to the original
`__call__`. So does a watched one, between the log's begin and end: the module's own hooks, and a replaced `forward`,
work as ever, keyword arguments arrive unchanged, and returns and exceptions are both recorded.

Forward hooks are torch's documented interface. They write to the same log, so each way is a check of the other. They
are used if the tap could not be built, and where nothing may be patched.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.recorder.python_device_stamps import PythonDeviceStamps
from talkerviz.recorder.python_events import Callbacks, Contexts, PythonEvents
from talkerviz.recorder.tensor_signatures import TensorKinds, kind_of, unpack

WAYS = ("auto", "tap", "hooks")
"""Values of the option `via`."""
HOOKS_COST = "10 to 25 µs a call, where the tap takes 1 to 7"  # measured by benchmarks/overhead.py

try:
    _native = importlib.import_module("talkerviz.recorder._tap")
    Tap: Any = _native.Tap
    DeviceStamps: Any = _native.DeviceStamps
    why_not = ""
except ImportError as error:
    Tap, DeviceStamps, why_not = None, PythonDeviceStamps, str(error)


def choose_way(via: str) -> str:
    """Resolve the option `via` to `tap` or `hooks`.

    Raises:
        ValueError: the value is unknown, or it is `tap` and the tap could not be built.
    """
    if via not in WAYS:
        raise ValueError(f"unknown via {via!r}: choose from {', '.join(WAYS)}")
    if via == "tap" and Tap is None:
        raise ValueError(f"via 'tap': it is not built here ({why_not}); use 'hooks', or install with a C compiler")
    if via == "auto" and Tap is None:
        _warn_of_slow_hooks()
    return "hooks" if via == "hooks" or Tap is None else "tap"


@functools.cache
def _warn_of_slow_hooks() -> None:
    problem = f"the compiled tap could not be loaded ({why_not}): recording through forward hooks, {HOOKS_COST}"
    warnings.warn(f"{problem}; reinstall talkerviz with a C compiler", RuntimeWarning, stacklevel=4)


def make_events(
    native: Any,
    original: Callable[..., Any] | None,
    names: dict[str, int],
    kinds: TensorKinds,
    callbacks: Callbacks,
    contexts: Contexts,
    start: int = 0,
    frame: int = 0,
    timed: bool = True,
    limit: int = 1 << 15,
    device_stamps: Any = None,
    roots: bool = False,
) -> Any:
    """Create the log of call events, native or in Python.

    Args:
        native: the compiled class, or None to log in Python.
        original: the `nn.Module.__call__` that the tap calls; None for hooks.
        names: numbers of dict keys and attribute names on the way to tensors; new ones are added.
        kinds: numbers of dtypes and devices.
        callbacks: functions of the recording that the log calls.
        contexts: context variables that the log reads.
        start: number of the phase that the run begins with.
        frame: number of the phase of frames that the log counts itself, at modules of `FRAME_LANDMARK`.
        timed: whether events hold times, in nanoseconds; -1 otherwise.
        limit: number of events after which `full` is called.
        device_stamps: the `DeviceStamps` that stamp calls on their device; None for no stamps.
        roots: whether to call `stranger` with each unwatched module that is called outside any other.
    """
    functions = {name: function and not_compiled(function) for name, function in vars(callbacks).items()}
    common: dict[str, Any] = {
        "names": names,
        "start": start,
        "frame": frame,
        "timed": timed,
        "limit": limit,
        "device_stamps": device_stamps,
    }
    if native is None:
        return PythonEvents(kinds=kinds, callbacks=Callbacks(**functions), contexts=contexts, **common)
    return native(
        tensor=Tensor,
        parameter=nn.Parameter,
        kind_of=not_compiled(kind_of),
        unpack=not_compiled(unpack),
        tensor_row=not_compiled(kinds.row),
        tensor_kind=not_compiled(kinds.number),
        below=original,
        **functions,
        **vars(contexts),
        roots=roots,
        **common,
    )


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that Dynamo does not compile it between the pieces of a compiled region.

    `torch.compiler.disable` does the same for 15 microseconds a call.
    """
    set_eval_frame = torch._C._dynamo.eval_frame.set_eval_frame

    def call(*args: Any, **kwargs: Any) -> Any:
        before = set_eval_frame(None)
        try:
            return function(*args, **kwargs)
        finally:
            set_eval_frame(before)

    torch._dynamo.eval_frame.skip_code(call.__code__)
    return call
