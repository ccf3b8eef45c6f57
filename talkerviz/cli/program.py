"""A Python program run as `python` would run it: its own `__main__`, arguments, search path and traceback."""

from __future__ import annotations

import builtins
import concurrent.futures.thread as pools
import importlib.util
import runpy
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
_OURS = (__name__, "runpy", "importlib._bootstrap", "importlib._bootstrap_external")


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes:
        name: name for messages and the trace.
        argv: its `sys.argv`.
        search_path: first entry of its `sys.path`.
        load: returns its code and the `__spec__` of its `__main__`, None for a script.
    """

    name: str
    argv: list[str]
    search_path: str
    load: Callable[[], tuple[CodeType, ModuleSpec | None]]


def script_program(target: str, args: Sequence[str]) -> Program:
    """Return the program of a file, or of a console script such as `pytest`.

    Raises:
        ValueError: no such file or console script, or it is no Python program.
    """
    path = Path(target)
    if path.is_dir():
        raise ValueError(f"{target}: is a directory; name a script in it")
    if not path.exists():
        installed = None if "/" in target or target.endswith(".py") else shutil.which(target)
        if installed is None:
            raise ValueError(f"{target or repr(target)}: no such script, and no installed command of that name")
        path = Path(installed)
        if not _is_python(path):
            raise ValueError(f"{target}: {path} is no Python program; give a script, -m MODULE or a console script")
    content = path.read_bytes()

    def load() -> tuple[CodeType, None]:
        return compile(content, str(path.absolute()), "exec", dont_inherit=True), None

    return Program(path.name, [str(path), *args], str(path.resolve().parent), load)


def module_program(module: str, args: Sequence[str]) -> Program:
    """Return the program of `python -m module`.

    Raises:
        ValueError: the name is not that of a module.
    """
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"-m {module!r}: not the name of a module")
    if not _exists(module):
        raise ValueError(f"-m {module}: no module of that name")

    def load() -> tuple[CodeType, ModuleSpec]:
        _, spec, code = runpy._get_module_details(module)  # type: ignore[attr-defined]  # as pdb and coverage do
        sys.argv[0] = str(spec.origin)
        return code, spec

    return Program(module, ["-m", *args], str(Path.cwd()), load)


def _is_python(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.read(256).split(b"\n")
    # Long interpreter paths are written as `#!/bin/sh` and `'''exec' /long/path/python` in the second line.
    return any(b"python" in line for line in first[:2])


def _exists(module: str) -> bool:
    top = module.partition(".")[0]
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False
    finally:
        sys.path.pop(0)


def run_program(program: Program) -> int:
    """Run a program to its end, and that of its threads, and return its exit code.

    An exception is reported as Python reports it, without the frames of this function's callers. `__main__` and
    `sys.argv` stay the program's: its exit handlers are still to run.
    """
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"], sys.argv = main, program.argv
    if not getattr(sys.flags, "safe_path", False):  # Python 3.10 has no such flag
        sys.path[0] = program.search_path
    try:
        code, spec = program.load()
        main.__spec__ = spec
        main.__file__ = code.co_filename
        main.__loader__ = None if spec is None else spec.loader
        main.__package__ = None if spec is None else spec.parent
        main.__dict__["__cached__"] = None if spec is None else spec.cached
        exec(code, main.__dict__)
        _join_threads()
    except SystemExit as stop:
        return _exit_code(stop)
    except BaseException as error:
        error.__traceback__ = _of_program(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1


def _of_program(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__") in _OURS:
        traceback = traceback.tb_next
    return traceback


def _join_threads() -> None:
    """Wait for the program's threads, as Python does before it exits; those of pools wait for it in turn."""
    for thread in threading.enumerate():
        idle = thread in pools._threads_queues
        if thread is not threading.current_thread() and not thread.daemon and not idle:
            thread.join()


def when_imported(name: str, function: Callable[[], None]) -> None:
    """Call a function once a module has been imported, at once if it has been already."""
    if name in sys.modules:
        function()
    else:
        sys.meta_path.insert(0, _ImportWatch(name, function))


class _ImportWatch(MetaPathFinder):
    def __init__(self, name: str, function: Callable[[], None]) -> None:
        self._name, self._function = name, function
        self._finds = False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Find the watched module by the other finders, and watch its execution."""
        if fullname != self._name or self._finds:
            return None
        self._finds = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._finds = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # Not sooner: programs ask for the spec to know whether the module is there.
            sys.meta_path.remove(self)
            execute(module)
            self._function()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
