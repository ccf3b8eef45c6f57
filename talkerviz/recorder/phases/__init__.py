"""Phases, frames and requests of module calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from talkerviz.trace.event_log import Mark


class PhaseRule(Protocol):
    """Rule by which one run of a model divides into phases, frames and steps.

    A rule is called at a few landmark modules only, so the other calls of a run cost nothing.

    Attributes:
        start: the mark that a run begins with.
        landmarks: paths of the modules at whose calls the rule is called.
        outermost: True to call it only for landmarks called outside of any other, and not when they return.
    """

    start: Mark
    landmarks: frozenset[str]
    outermost: bool

    def entered(self, path: str, arguments: Mapping[str, Any]) -> Mark | None:
        """Return the mark that begins with a call of a landmark, if any.

        Args:
            path: path of the landmark.
            arguments: its arguments by name; positional ones have the names of `forward`'s parameters.
        """

    def left(self, path: str) -> Mark | None:
        """Return the mark that begins as a call of a landmark returns, if any."""
