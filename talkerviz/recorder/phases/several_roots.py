"""Phase rule of several models: each has phases and frames of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from talkerviz.recorder.phases.generic import PassPhases, passes_of
from talkerviz.trace.event_log import FinalPhases, Log, Mark

OUTSIDE = "other"
"""Phase of calls before the first pass."""

_MIN_STEPS = 8  # of a loop, for a model with a pass less to be part of it: fewer passes may be of anything


class RootPhases:
    """Phase rule of several models, by the generic rule of each.

    Args:
        names_alone: whether phases have the model's name even if only one model is called.

    A phase has its model's name, as in `unet.forward`. Frames of each model are its own passes; `final_log` keeps them
    for the models that make the most. More models may be added in the run.

    Attributes:
        start: the mark that a run begins with.
        landmarks: paths of the modules at whose calls the rule is called.
        passes: number of passes of each model, by its path.
    """

    outermost = True

    def __init__(self, names_alone: bool) -> None:
        self.start = Mark(OUTSIDE)
        self._names_alone = names_alone
        self.landmarks: frozenset[str] = frozenset()
        self.passes: Counter[str] = Counter()
        self._rules: dict[str, PassPhases] = {}
        self._root_of: dict[str, str] = {}  # of each landmark

    def again(self) -> RootPhases:
        """Return a rule of the same models for another run."""
        rule = RootPhases(self._names_alone)
        rule.passes, rule._root_of, rule.landmarks = self.passes, self._root_of, self.landmarks
        rule._rules = {path: PassPhases(path, each.passes) for path, each in self._rules.items()}
        return rule

    def add(self, path: str, model: nn.Module) -> None:
        """Add a model.

        Args:
            path: its path.
            model: the model.
        """
        rule = PassPhases(path, passes_of(model, path))
        self._rules[path] = rule
        for landmark in rule.landmarks:
            self._root_of.setdefault(landmark, path)
        self.landmarks = frozenset(self._root_of)

    def entered(self, path: str, arguments: Mapping[str, Any]) -> Mark | None:
        """Begin a pass of the model that the landmark belongs to."""
        root = self._root_of[path]
        mark = self._rules[root].entered(path, arguments)
        if mark is None:
            return None
        self.passes[root] += mark.frame is not None
        return mark._replace(phase=f"{root}.{mark.phase}")

    def left(self, path: str) -> Mark | None:
        """Begin nothing: calls between passes belong to the pass before."""
        return None

    def main_root(self) -> str | None:
        """Return the path of the model with the most passes; of several the first. None if there is no pass."""
        return next((path for path, _ in self.passes.most_common(1)), None)

    def final_log(self, log: Log, trains: bool, keeps_frames: bool) -> Log:
        """Return the log with final phases and frames.

        A single model's phases go without its name. Of several, those with fewer passes than another have no frames:
        a text encoder or a decoder of images is called once for many steps of a diffusion model.

        A model may have a pass less than another, as a run can end inside a step.

        Args:
            log: the log of the run.
            trains: whether it is of a training loop, whose frames are its steps: all models have their part in each.
            keeps_frames: whether frames are the user's.
        """
        most = max(self.passes.values(), default=0)
        enough = most - 1 if most >= _MIN_STEPS else most
        alone = self.main_root() if len(self.passes) == 1 and not self._names_alone else None
        final: dict[str, int] = {}
        numbers, has_frames = [], []
        for name in log.names.phases:
            root = next((path for path in self._rules if name.startswith(f"{path}.")), None)
            has_frames.append(trains or keeps_frames or root is None or self.passes[root] >= enough)
            short = name.removeprefix(f"{root if trains else alone}.")
            numbers.append(final.setdefault(short, len(final)))
        names = replace(log.names, phases=list(final))
        return replace(log, names=names, final_phases=FinalPhases(tuple(numbers), tuple(has_frames)))
