"""Watch one module: log the beginning and the end of each of its calls.

The module's `forward` is replaced on the instance, not hooked. torch runs any hook through a slow path that costs more
than a microsecond a call before the hook does a thing, and its `always_call` hooks see neither Ctrl-C nor which
exception it was; scripted modules refuse hooks altogether. Around `forward` the cost is a twentieth of that, keyword
arguments arrive as they are, and every way out is seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from talkerviz.record.events import ThreadLog
from talkerviz.record.tensors import NO_TENSORS, Signatures

Entered = Callable[[ThreadLog, str, Mapping[str, Any]], None]
Left = Callable[[ThreadLog, str], None]


def watch(
    module: nn.Module,
    number: int,
    path: str,
    log_of_thread: Callable[[], ThreadLog],
    signatures: Signatures,
    now: Callable[[], int],
    entered: Entered | None,
    left: Left | None,
) -> Callable[[], None]:
    """Log every call of the module from here on, as the events that `ThreadLog` describes.

    Args:
        module: what to watch.
        number: what names it in the log.
        path: what names it to `entered` and `left`.
        log_of_thread: gives the calling thread's log.
        signatures: turns tensors into numbers.
        now: nanoseconds on the run's clock.
        entered: called before a call is logged, if given.
        left: called after its end is logged, if given.

    Returns:
        What undoes it: afterwards the module is exactly as before.
    """
    of_inputs, of_output = signatures.of_inputs, signatures.of_output
    ended = -1 - number

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> ThreadLog:
        log = log_of_thread()
        if entered is not None:
            entered(log, path, kwargs)
        # The clock is read last here and first in `end`, so that a call's time leaves its own logging out.
        log.events += (number, of_inputs(args, kwargs), now())
        return log

    def end(log: ThreadLog, output: Any, time: int) -> None:
        log.events += (ended, of_output(output), time)
        if left is not None:
            left(log, path)

    def fail(log: ThreadLog, error: str, time: int) -> None:
        log.errors[len(log.events)] = error
        log.events += (ended, NO_TENSORS, time)
        if left is not None:
            left(log, path)

    # A module compiled in place does not call `forward` from Python.
    attribute = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
    inner = getattr(module, attribute)
    had_own = attribute in vars(module)

    @functools.wraps(inner)
    def traced(*args: Any, **kwargs: Any) -> Any:
        log = begin(args, kwargs)
        try:
            output = inner(*args, **kwargs)
        except BaseException as error:
            fail(log, type(error).__name__, now())
            raise
        time = now()
        end(log, output, time)
        return output

    vars(module)[attribute] = traced

    def undo() -> None:
        if had_own:
            vars(module)[attribute] = inner
        else:
            del vars(module)[attribute]

    return undo
