"""NVTX ranges of calls and frames, for Nsight Systems.

Each call is a range of its thread, named by the module's path and the phase: `talker.model.norm [decode]`. The frame is
not in the name, so that the profiler's tables add up equal calls; each frame is a range of its own, of the whole
process, since it begins and ends between calls: `frame 3`.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from talkerviz.recorder.instruments.base import Instrument, RunContext, Undo
from talkerviz.recorder.method_patch import patch_method
from talkerviz.trace.event_log import Mark


@dataclass(frozen=True)
class Nvtx:
    """Functions of an NVTX binding: `push` and `pop` for a thread's nested ranges, `start` and `end` for any other."""

    push: Callable[[str], object]
    pop: Callable[[], object]
    start: Callable[[str], Any]
    end: Callable[[Any], object]


def load_nvtx() -> Nvtx:
    """Return torch's binding, or that of the nvtx package if torch is built without CUDA.

    Raises:
        ValueError: neither is installed.
    """
    if torch.version.cuda or torch.version.hip:
        own = torch.cuda.nvtx
        return Nvtx(own.range_push, own.range_pop, own.range_start, own.range_end)
    try:
        nvtx = importlib.import_module("nvtx")
    except ImportError as error:
        raise ValueError("nvtx: this torch is built without CUDA; pip install 'talkerviz[nvtx]'") from error
    return Nvtx(nvtx.push_range, nvtx.pop_range, nvtx.start_range, nvtx.end_range)


class NvtxRanges(Instrument):
    """Instrument that marks calls and frames, and adds nothing to the trace.

    Args:
        run: the recording.

    Raises:
        ValueError: no NVTX binding is installed.
    """

    inside_tap = True  # the tap learns the phase as a call begins

    def __init__(self, run: RunContext) -> None:
        self._nvtx = load_nvtx()
        self._paths = dict(run.paths)
        self._of_thread = threading.local()
        self._latest = run.start.phase
        self._names: dict[tuple[str, str], str] = {}  # by path and phase
        self._frame: tuple[int | None, int] = None, 0  # and its run
        self._frame_range: Any = None

    def attach(self, undo: Undo) -> None:
        """Patch `nn.Module.__call__`."""
        undo.append(self._close)
        patch_method(nn.Module, "__call__", self._wrap_call, undo)

    def _wrap_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        find, name, push, pop = self._paths.get, self._name, self._nvtx.push, self._nvtx.pop

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = find(id(self))
            if path is None:
                return original(self, *args, **kwargs)
            push(name(path))
            try:
                return original(self, *args, **kwargs)
            finally:
                pop()

        # Between the pieces of a compiled region Dynamo looks at all Python code that runs.
        for function in (call, name):
            torch._dynamo.eval_frame.skip_code(function.__code__)
        return call

    def _name(self, path: str) -> str:
        of_thread = self._of_thread
        if not hasattr(of_thread, "phase"):
            of_thread.phase = self._latest  # the phase that the thread's log begins with
        name = self._names.get((path, of_thread.phase))
        if name is None:
            name = self._names[path, of_thread.phase] = f"{path} [{of_thread.phase}]"
        return name

    def on_replica(self, replica: nn.Module, module: nn.Module) -> None:
        """Mark a replica's calls as calls of the module."""
        self._paths[id(replica)] = self._paths[id(module)]
        weakref.finalize(replica, self._paths.pop, id(replica), None).atexit = False

    def on_mark(self, mark: Mark) -> None:
        """Set the thread's phase; begin the frame's range if it is another frame."""
        self._of_thread.phase = self._latest = mark.phase
        if self._frame == (mark.frame, mark.run):
            return
        self._end_frame()
        self._frame = mark.frame, mark.run
        if mark.frame is not None:
            self._frame_range = self._nvtx.start(f"frame {mark.frame}" + (f" of run {mark.run}" if mark.run else ""))

    def _end_frame(self) -> None:
        frame_range, self._frame_range = self._frame_range, None
        if frame_range is not None:
            self._nvtx.end(frame_range)

    def _close(self) -> None:
        """End the frame, and mark nothing any more: a module compiled in the recording keeps the wrapper."""
        self._paths.clear()
        self._end_frame()
