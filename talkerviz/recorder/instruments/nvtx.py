"""NVTX ranges, by which Nsight Systems knows calls and frames by their names.

Each call is a range of its thread, named by the module's path and the phase: `talker.model.norm [decode]`. The frame is
not in it, so that the profiler's tables add up what is alike; each frame is a range of its own, of the whole process,
since it begins and ends between calls: `frame 3`.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from talkerviz.trace.event_log import Mark


@dataclass(frozen=True)
class Nvtx:
    """What marks ranges: `push` and `pop` nested ones of a thread, `start` and `end` any of the process."""

    push: Callable[[str], object]
    pop: Callable[[], object]
    start: Callable[[str], Any]
    end: Callable[[Any], object]


def load_nvtx() -> Nvtx:
    """Those of torch, or of the nvtx package where torch has none.

    Raises:
        ValueError: there are none.
    """
    if torch.version.cuda or torch.version.hip:
        own = torch.cuda.nvtx
        return Nvtx(own.range_push, own.range_pop, own.range_start, own.range_end)
    try:
        nvtx = importlib.import_module("nvtx")
    except ImportError as error:
        raise ValueError("nvtx: this torch is built without CUDA; pip install 'talkerviz[nvtx]'") from error
    return Nvtx(nvtx.push_range, nvtx.pop_range, nvtx.start_range, nvtx.end_range)


class NvtxRanges:
    """The ranges of one recording.

    Args:
        paths: of each module whose calls are marked, its path by its `id`.
        mark: the one that the recording begins with.

    Raises:
        ValueError: nothing here can mark ranges.
    """

    def __init__(self, paths: Mapping[int, str], mark: Mark) -> None:
        self._nvtx = load_nvtx()
        self._paths = dict(paths)
        self._of_thread = threading.local()
        self._latest = mark.phase
        self._texts: dict[tuple[str, str], str] = {}
        self._frame: tuple[int | None, int] = None, 0  # and its run
        self._began: Any = None

    def stand_in(self, below: Callable[..., Any]) -> Callable[..., Any]:
        """What is to stand in for `nn.Module.__call__`, behind the tap, which learns the phase as a call begins."""
        find, text, push, pop = self._paths.get, self._text, self._nvtx.push, self._nvtx.pop

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = find(id(self))
            if path is None:
                return below(self, *args, **kwargs)
            push(text(path))
            try:
                return below(self, *args, **kwargs)
            finally:
                pop()

        # Between the pieces of a compiled region Dynamo looks at all Python code that runs.
        for function in (call, text):
            torch._dynamo.eval_frame.skip_code(function.__code__)
        return call

    def _text(self, path: str) -> str:
        of_thread = self._of_thread
        if not hasattr(of_thread, "phase"):
            of_thread.phase = self._latest  # what its log begins with
        text = self._texts.get((path, of_thread.phase))
        if text is None:
            text = self._texts[path, of_thread.phase] = f"{path} [{of_thread.phase}]"
        return text

    def copy(self, replica: nn.Module, module: nn.Module) -> None:
        """Mark a replica's calls as those of the module."""
        self._paths[id(replica)] = self._paths[id(module)]
        weakref.finalize(replica, self._paths.pop, id(replica), None).atexit = False

    def to(self, mark: Mark) -> None:
        """What follows on this thread belongs to this mark: if that is another frame, its range begins."""
        self._of_thread.phase = self._latest = mark.phase
        if self._frame == (mark.frame, mark.run):
            return
        self._end_frame()
        self._frame = mark.frame, mark.run
        if mark.frame is not None:
            self._began = self._nvtx.start(f"frame {mark.frame}" + (f" of run {mark.run}" if mark.run else ""))

    def _end_frame(self) -> None:
        began, self._began = self._began, None
        if began is not None:
            self._nvtx.end(began)

    def close(self) -> None:
        """End the frame, and mark nothing any more: a module compiled in the recording keeps what stood in."""
        self._paths.clear()
        self._end_frame()
