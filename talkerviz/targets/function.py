"""What a function of the user's returns, as a target."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from torch import nn

from talkerviz.recorder.module_tree import if_several
from talkerviz.targets.target import Target
from talkerviz.user_errors import cause_of


def function_target(spec: str) -> Target:
    """`package.module:function`; the function returns a model and a callable that runs it.

    Raises:
        ValueError: there is no such module or function, it raises something, or it returns something else.
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise ValueError(
            f"target {spec!r}: give `talker`, `code2wav`, a folder with a config.json, or `package.module:function`"
        )
    # As `python -m` does, so that a script beside the user is found.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        without = module_name.removesuffix(".py").replace("/", ".")
        hint = f"; write {without}:{function_name}, without .py" if module_name.endswith(".py") else ""
        raise ValueError(f"target {spec!r}: {error}{hint}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"target {spec!r}: importing {module_name} raised {cause_of(error)}") from error
    try:
        made = function()
    except (Exception, SystemExit) as error:
        raise ValueError(f"target {spec!r}: the function raised {cause_of(error)}") from error
    if wrong := _wrong_with(made):
        raise ValueError(f"target {spec!r}: the function must return (model, callable): {wrong}")
    model, run_model = made
    return Target("model", model, lambda on_frame: run_model(), {"target": spec})


def _wrong_with(made: object) -> str | None:
    """Why what a function returned is no model and callable; None where it is."""
    if not isinstance(made, tuple):
        return f"it returned {_kind(made)}"
    if len(made) != 2:
        return f"it returned a tuple of {len(made)}"
    model, run_model = made
    if not isinstance(model, nn.Module):
        return f"the first is {_kind(model)}, not a torch.nn.Module{if_several(model)}"
    return None if callable(run_model) else f"the second is {_kind(run_model)}; write lambda: model(x)"


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"a{'n' if name[0] in 'aeiou' else ''} {name}"
