"""Which phase, frame and step a call belongs to, read off the calls of a few landmark modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from talkerviz.trace.log import Mark


class PhaseRule(Protocol):
    """How one kind of model divides its run into phases.

    Only the modules in `landmarks` are watched, so the other calls of a run cost nothing.
    """

    start: Mark
    landmarks: frozenset[str]

    def entered(self, path: str, arguments: Mapping[str, Any]) -> Mark | None:
        """The mark that begins with this call, if any; arguments by name, given by place too where they have one."""

    def left(self, path: str) -> Mark | None:
        """The mark that begins when this call has returned, if any."""


class TalkerPhases:
    """The talker, ours and transformers': setup, prefill and decode, and the code predictor's own two.

    A frame begins with a pass of the root. All that follows it until the next one serves the code predictor: embedding
    the first code for its first pass (2 positions: `predictor.prefill`), then 14 passes of one position
    (`predictor.decode`), then embedding the last code.

    Args:
        root: its name.
        warm_ups: so many frames after the first are none of the speech, but run to be captured later: `warmup`.
    """

    start = Mark("setup")

    def __init__(self, root: str, warm_ups: int = 0) -> None:
        self._root = root
        self._warm_ups = warm_ups
        self._warming = False
        self._predictor = f"{root}.code_predictor"
        self.landmarks = frozenset({self._root, self._predictor})
        self._frame = -1
        self._step = 0

    def entered(self, path: str, arguments: Mapping[str, Any]) -> Mark | None:
        """A pass of the root begins a frame, a pass of the code predictor a step."""
        if path == self._root:
            self._warming = self._frame == 0 and self._warm_ups > 0
            if self._warming:
                self._warm_ups -= 1
                return Mark("warmup")
            self._frame += 1
            return Mark("decode" if self._frame else "prefill", self._frame)
        if self._warming:
            return None
        positions = arguments.get("inputs_embeds")
        starts = positions is not None and positions.shape[1] > 1
        self._step = 0 if starts else self._step + 1
        return Mark("predictor.prefill" if starts else "predictor.decode", self._frame, self._step)

    def left(self, path: str) -> Mark | None:
        """After the root's pass the first code is embedded for the code predictor."""
        return Mark("predictor.prefill", self._frame, 0) if path == self._root and not self._warming else None
