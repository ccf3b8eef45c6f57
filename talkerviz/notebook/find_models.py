"""Recording of the models that a cell calls, without naming them."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from talkerviz.api import recording
from talkerviz.recorder.method_patch import patch_method
from talkerviz.recorder.recording import Recording


@contextmanager
def recording_called(variables: Mapping[str, Any]) -> Iterator[Mapping[str, Recording[Any]]]:
    """Record the models that the code inside the `with` block calls.

    They are determined at the first call of a module that the code does not record itself: the models in variables at
    that time, or, if the called module belongs to none of them, that module as `model`.

    Args:
        variables: values of the code's variables by name, read at the first call.

    Yields:
        Recordings by name of the variable, also of models that were not called; empty until the first call.
    """
    found: dict[str, Recording[Any]] = {}
    undo: list[Callable[[], None]] = []
    lock = threading.Lock()
    with ExitStack() as recordings:

        def until_one_is_called(below: Callable[..., Any]) -> Callable[..., Any]:
            def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                with lock:
                    # If the code started a recording itself, that recording has this call.
                    first = bool(undo) and inspect.getattr_static(nn.Module, "__call__") is call
                    if first:
                        undo.pop()()
                        for name, model in _models(variables, module).items():
                            found[name] = recordings.enter_context(recording(model, name))
                return nn.Module.__call__(module, *args, **kwargs) if first else below(module, *args, **kwargs)

            return call

        patch_method(nn.Module, "__call__", until_one_is_called, undo)
        try:
            yield found
        finally:
            for step_back in undo:
                step_back()


def _models(variables: Mapping[str, Any], called: nn.Module) -> dict[str, nn.Module]:
    """Return the models in variables, without parts of others, and the called module if it is in none."""
    held = {
        name: value for name, value in variables.items() if isinstance(value, nn.Module) and not name.startswith("_")
    }
    parts = {id(part) for model in held.values() for part in model.modules() if part is not model}
    models: dict[str, nn.Module] = {}
    for name, model in held.items():
        if id(model) not in parts and not any(model is known for known in models.values()):
            models[name] = model
    if not any(called is part for model in models.values() for part in model.modules()):
        models["model" if "model" not in models else "called"] = called
    return models
