"""What a function of the user's returns, as a target."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from torch import nn

from talkerviz.cause import cause_of
from talkerviz.targets.target import Target


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
        raise ValueError(f"target {spec!r}: {error}") from error
    except Exception as error:
        raise ValueError(f"target {spec!r}: importing {module_name} raised {cause_of(error)}") from error
    try:
        made = function()
    except Exception as error:
        raise ValueError(f"target {spec!r}: the function raised {cause_of(error)}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1])):
        raise ValueError(f"target {spec!r}: the function must return (model, callable), not {type(made).__name__}")
    model, run_model = made
    return Target("model", model, lambda on_frame: run_model(), {"target": spec})
