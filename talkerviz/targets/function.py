"""A model and a callable, returned by a function of the user's, as a target."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from torch import nn

from talkerviz.recorder.module_tree import if_several
from talkerviz.targets.target import Target
from talkerviz.user_errors import cause_of


def function_target(spec: str) -> Target:
    """Make a target from the model and the callable that a function returns.

    Args:
        spec: `package.module:function`.

    Raises:
        ValueError: there is no such module or function, it raises an exception, or it returns something else.
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise ValueError(
            f"target {spec!r}: give `talker`, `code2wav`, a folder with a config.json, or `package.module:function`"
        )
    # As `python -m` does, so that modules in the current folder are found.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        dotted_name = module_name.removesuffix(".py").replace("/", ".")
        hint = f"; write {dotted_name}:{function_name}, without .py" if module_name.endswith(".py") else ""
        raise ValueError(f"target {spec!r}: {error}{hint}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"target {spec!r}: importing {module_name} raised {cause_of(error)}") from error
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise ValueError(f"target {spec!r}: the function raised {cause_of(error)}") from error
    if problem := _problem_with(result):
        raise ValueError(f"target {spec!r}: the function must return (model, callable): {problem}")
    model, run_model = result
    return Target("model", model, lambda on_frame: run_model(), {"target": spec})


def _problem_with(result: object) -> str | None:
    """Describe why a function's result is not a model and a callable; None if it is."""
    if not isinstance(result, tuple):
        return f"it returned {_type_name(result)}"
    if len(result) != 2:
        return f"it returned a tuple of {len(result)}"
    model, run_model = result
    if not isinstance(model, nn.Module):
        return f"the first is {_type_name(model)}, not a torch.nn.Module{if_several(model)}"
    return None if callable(run_model) else f"the second is {_type_name(run_model)}; write lambda: model(x)"


def _type_name(value: object) -> str:
    name = type(value).__name__
    return f"a{'n' if name[0] in 'aeiou' else ''} {name}"
