"""Phase rule of the talker."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from talkerviz.trace.event_log import Mark


class TalkerPhases:
    """Phase rule of the talker, ours and transformers': setup, prefill, decode, and the code predictor's own two.

    A frame begins with a pass of the root. All calls from there to the next pass serve the code predictor: embedding
    the first code for its first pass (2 positions: `predictor.prefill`), then 14 passes of one position
    (`predictor.decode`), then embedding the last code. A pass of several positions is the prefill of another prompt and
    begins a request. Threads and tasks that speak at the same time have frames of their own, numbered together.

    Args:
        root: path of the talker.
        warm_ups: number of frames after the first that are not speech but warm up a CUDA graph: phase `warmup`.
    """

    start = Mark("setup")
    outermost = False

    def __init__(self, root: str, warm_ups: int = 0) -> None:
        self._root = root
        self._warm_ups = warm_ups
        self._predictor = f"{root}.code_predictor"
        self.landmarks = frozenset({self._root, self._predictor})
        self._state: ContextVar[_Speech] = ContextVar("speech", default=_SILENCE)
        self._frames, self._requests = itertools.count(), itertools.count()

    def entered(self, path: str, arguments: Mapping[str, Any]) -> Mark | None:
        """Begin a frame at a pass of the root, and a step at a pass of the code predictor."""
        state = self._state.get()
        positions = arguments.get("inputs_embeds")
        several = positions is not None and positions.shape[1] > 1
        if path == self._root:
            if state.frame == 0 and self._warm_ups > 0:
                self._warm_ups -= 1
                self._state.set(state._replace(warming=True))
                return Mark("warmup")
            is_prefill = several or state.request is None
            request = next(self._requests) if is_prefill else state.request
            state = _Speech(request, next(self._frames))
            self._state.set(state)
            return Mark("prefill" if is_prefill else "decode", state.frame, request=request)
        if state.warming:
            return None
        state = state._replace(step=0 if several else state.step + 1)
        self._state.set(state)
        phase = "predictor.prefill" if several else "predictor.decode"
        return Mark(phase, state.frame, state.step, request=state.request)

    def left(self, path: str) -> Mark | None:
        """Begin the code predictor's prefill after the root's pass: the first code is embedded for it."""
        state = self._state.get()
        if path != self._root or state.warming:
            return None
        return Mark("predictor.prefill", state.frame, 0, request=state.request)


class _Speech(NamedTuple):
    """Position of a thread or task in its speech: request, frame, step, and whether it only warms up."""

    request: int | None = None
    frame: int = -1
    step: int = 0
    warming: bool = False


_SILENCE = _Speech()
