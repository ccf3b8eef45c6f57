"""A model that a user's function returns, as a target."""

from __future__ import annotations

import importlib
import importlib.util
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from talkerviz.recorder.module_tree import if_several
from talkerviz.targets.target import OnFrame, Target
from talkerviz.user_errors import cause_of

_HELP_OPTIONS = ("-h", "--help")


class _Arguments(list[str]):
    """A `sys.argv` that notes whether its arguments are read; its first item, the program, is none."""

    were_read = False

    def __getitem__(self, index: Any) -> Any:
        self.were_read = self.were_read or index != 0
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[str]:
        self.were_read = True
        return super().__iter__()

    def __len__(self) -> int:
        self.were_read = True
        return super().__len__()


def function_target(spec: str, arguments: Sequence[str] = ()) -> Target:
    """Call a user's function and return the model and the callable that it returns as a target.

    While its module is imported, it is called, and its callable is run, `sys.argv` is the function's own.

    Args:
        spec: `package.module:function`.
        arguments: the function's command-line arguments, `sys.argv[1:]`.

    Raises:
        ValueError: there is no such module or function, it raises something, it returns something else, or it leaves
            its arguments unread.
        SystemExit: it printed its help.
    """
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"target {spec!r}: name a function, as package.module:function")
    # As `python -m` does, so that a script beside the user is found.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    argv = _Arguments([module_name, *arguments])
    try:
        argv[0] = _file_of(module_name) or module_name
        with _as_sys_argv(argv):
            function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        dotted_name = module_name.removesuffix(".py").replace("/", ".")
        hint = f"; write {dotted_name}:{function_name}, without .py" if module_name.endswith(".py") else ""
        raise ValueError(f"target {spec!r}: {error}{hint}") from error
    except SystemExit as stop:
        raise _stopped(stop, spec, f"importing {module_name}", arguments) from stop
    except Exception as error:
        raise ValueError(f"target {spec!r}: importing {module_name} raised {cause_of(error)}") from error
    try:
        with _as_sys_argv(argv):
            returned = function()
    except SystemExit as stop:
        raise _stopped(stop, spec, "the function", arguments) from stop
    except Exception as error:
        raise ValueError(f"target {spec!r}: the function raised {cause_of(error)}") from error
    if wrong := _wrong_with(returned):
        raise ValueError(f"target {spec!r}: the function must return (model, callable): {wrong}")
    if arguments and not argv.were_read:
        raise ValueError(
            f"target {spec!r}: it does not read sys.argv, so nothing reads {shlex.join(arguments)}; write options of "
            "talkerviz before the function's name"
        )
    model, run_model = returned

    def run(on_frame: OnFrame) -> Any:
        with _as_sys_argv(argv):
            return run_model()

    return Target("model", model, run, {"target": spec})


def _file_of(module_name: str) -> str | None:
    """Return the file that a module is in, as `python -m` puts it in `sys.argv[0]`."""
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):  # importing it says more
        return None
    return spec.origin if spec and spec.has_location else None


@contextmanager
def _as_sys_argv(argv: list[str]) -> Iterator[None]:
    ours = sys.argv
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv = ours


def _stopped(stop: SystemExit, spec: str, what: str, arguments: Sequence[str]) -> BaseException:
    """Return the error to raise for an exit: itself where argparse has printed help."""
    if not stop.code and any(option in arguments for option in _HELP_OPTIONS):
        return stop.with_traceback(None)
    return ValueError(f"target {spec!r}: {what} exited with code {stop.code or 0} before it returned a model")


def _wrong_with(returned: object) -> str | None:
    """Return why a function's result is no (model, callable), or None."""
    if not isinstance(returned, tuple):
        return f"it returned {_type_name(returned)}"
    if len(returned) != 2:
        return f"it returned a tuple of {len(returned)}"
    model, run_model = returned
    if not isinstance(model, nn.Module):
        return f"the first is {_type_name(model)}, not a torch.nn.Module{if_several(model)}"
    return None if callable(run_model) else f"the second is {_type_name(run_model)}; write lambda: model(x)"


def _type_name(value: object) -> str:
    """Return the name of a value's type with its article."""
    name = type(value).__name__
    return f"a{'n' if name[0] in 'aeiou' else ''} {name}"
