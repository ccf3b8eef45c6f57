"""A target: a model, and a function that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from talkerviz.recorder.phases import PhaseRule

OnFrame = Callable[[int], None]


@dataclass(frozen=True)
class Target:
    """A model, and a function that runs it once.

    Attributes:
        name: name of the root in the trace.
        model: module to trace.
        run: function of a callback for the number of frames done; returns the run's result.
        facts: metadata for the trace.
        phases: rule that divides the run into phases, as `recording` takes it; None for the default rule.
        frames: number of frames of the run; None if it is not known beforehand.
    """

    name: str
    model: nn.Module
    run: Callable[[OnFrame], Any]
    facts: Mapping[str, Any]
    phases: Callable[[str], PhaseRule] | None = None
    frames: int | None = None


def facts_of(source: str | Path) -> dict[str, str]:
    """Return the metadata of the weights' source: the name of a preset, or of a checkpoint's folder."""
    return {"checkpoint": source.resolve().name} if isinstance(source, Path) else {"preset": source}
