"""Recording of the processes that a program starts: forked ones, and Python interpreters."""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing.util
import os
import sys
from dataclasses import asdict
from pathlib import Path

from talkerviz.cli.program import when_imported
from talkerviz.cli.program_recorder import ProgramRecorder, RunOptions

VARIABLE = "TALKERVIZ_FOLLOW"
"""Environment variable with the options, for Python interpreters that are started."""
_STARTUP = Path(__file__).parent / "startup"
_LAST = -1_000  # priority at the end of a process of multiprocessing: after the program's own

_recorder: ProgramRecorder | None = None


def follow_children(recorder: ProgramRecorder) -> None:
    """Record this process, and have each process that it starts record itself.

    Python runs the `sitecustomize` that it finds first on its path, which begins a recording and then runs the one
    that would have been run.

    Args:
        recorder: recorder of this process.
    """
    global _recorder
    _recorder = recorder
    os.environ[VARIABLE] = json.dumps(asdict(recorder.options))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_STARTUP), *_python_path()])
    _watch_forks()
    when_imported("torch", _start)


def stop_following() -> None:
    """Record no more processes."""
    global _recorder
    _recorder = None
    os.environ.pop(VARIABLE, None)
    if paths := _python_path():
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    else:
        os.environ.pop("PYTHONPATH", None)


def _python_path() -> list[str]:
    """Return the environment's folders of modules, without our own."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(_STARTUP))]


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_begin_in_fork)
        # Called with the first argument, whose life is that of the registration.
        multiprocessing.util.register_after_fork(_finish_with_multiprocessing, _finish_with_multiprocessing)


def finish_child() -> None:
    """End the recording of this process, if it was started by the program."""
    if _recorder is not None and _recorder.child:
        _recorder.finish()


def begin_in_interpreter() -> None:
    """Begin to record a Python interpreter that a followed program has started."""
    options = json.loads(os.environ[VARIABLE])
    options["frames"] = options["frames"] and tuple(options["frames"])
    recorder = ProgramRecorder(RunOptions(**options), child=True)
    follow_children(recorder)


def _start() -> None:
    if _recorder is None:
        return
    _recorder.start()
    if _recorder.child:
        atexit.register(finish_child)  # now, so that it runs before the exit handlers of what the recorder has imported


def _begin_in_fork() -> None:
    global _recorder
    if _recorder is None:
        return
    before, _recorder = _recorder, ProgramRecorder(_recorder.options, child=True)
    before.abandon()
    if "torch" in sys.modules:  # else the watch of its import was inherited
        _start()


def _finish_with_multiprocessing(registered: object) -> None:
    # Its processes run no exit handlers, but finalizers; those of the process they were forked from are dropped.
    if _recorder is not None:
        multiprocessing.util.Finalize(None, finish_child, exitpriority=_LAST)
