"""What can be traced: a model, and the code that runs it."""

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
    """A model, and the code that runs it once.

    Attributes:
        name: the root's name in the trace.
        model: the module that is traced.
        run: runs it; calls back with the number of frames done, and returns what the run produced.
        facts: what to note of it in the trace.
        phases: how the run divides into phases, as `recording` takes it.
        frames: how many frames the run has, where that is known beforehand.
    """

    name: str
    model: nn.Module
    run: Callable[[OnFrame], Any]
    facts: Mapping[str, Any]
    phases: Callable[[str], PhaseRule] | None = None
    frames: int | None = None


def facts_of(source: str | Path) -> dict[str, str]:
    """What to note of whose weights they are: a preset's, or those of a checkpoint's folder."""
    return {"checkpoint": source.resolve().name} if isinstance(source, Path) else {"preset": source}
