"""Which phase, frame and step a call belongs to, read off the calls of a few landmark modules."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from talkerviz.trace.event_log import Mark


class TalkerPhases:
    """The talker, ours and transformers': setup, prefill and decode, and the code predictor's own two.

    A frame begins with a pass of the root. All that follows it until the next one serves the code predictor: embedding
    the first code for its first pass (2 positions: `predictor.prefill`), then 14 passes of one position
    (`predictor.decode`), then embedding the last code. A pass of several positions is another prompt's, and begins a
    request. Threads and tasks that speak at once have frames of their own, which are counted together.

    Args:
        root: its name.
        warm_ups: so many frames after the first are none of the speech, but run to be captured later: `warmup`.
    """

    start = Mark("setup")
    outermost = False

    def __init__(self, root: str, warm_ups: int = 0) -> None:
        self._root = root
        self._warm_ups = warm_ups
        self._predictor = f"{root}.code_predictor"
        self.landmarks = frozenset({self._root, self._predictor})
        self._here: ContextVar[_Speech] = ContextVar("speech", default=_SILENCE)
        self._frames, self._requests = itertools.count(), itertools.count()

    def entered(self, path: str, arguments: Mapping[str, Any]) -> Mark | None:
        """A pass of the root begins a frame, a pass of the code predictor a step."""
        here = self._here.get()
        positions = arguments.get("inputs_embeds")
        several = positions is not None and positions.shape[1] > 1
        if path == self._root:
            if here.frame == 0 and self._warm_ups > 0:
                self._warm_ups -= 1
                self._here.set(here._replace(warming=True))
                return Mark("warmup")
            begins = several or here.request is None
            request = next(self._requests) if begins else here.request
            here = _Speech(request, next(self._frames))
            self._here.set(here)
            return Mark("prefill" if begins else "decode", here.frame, request=request)
        if here.warming:
            return None
        here = here._replace(step=0 if several else here.step + 1)
        self._here.set(here)
        phase = "predictor.prefill" if several else "predictor.decode"
        return Mark(phase, here.frame, here.step, request=here.request)

    def left(self, path: str) -> Mark | None:
        """After the root's pass the first code is embedded for the code predictor."""
        here = self._here.get()
        if path != self._root or here.warming:
            return None
        return Mark("predictor.prefill", here.frame, 0, request=here.request)


class _Speech(NamedTuple):
    """Where a thread or task stands in what it speaks: its request, frame and step, and whether it only warms up."""

    request: int | None = None
    frame: int = -1
    step: int = 0
    warming: bool = False


_SILENCE = _Speech()
