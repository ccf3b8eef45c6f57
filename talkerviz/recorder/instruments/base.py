"""What is noted at the two edges of every call beside the host's time, and turned into columns after the run."""

from __future__ import annotations

from typing import Any, Protocol

import pandas as pd


class Gauge(Protocol):
    """One thing that is measured; made with a function that gives the number of the calling thread."""

    def start(self) -> None:
        """The run is about to begin, on this thread."""

    def stamp(self, beginning: bool) -> None:
        """A call begins, or else ends, on this thread."""

    def stop(self) -> None:
        """The run is over. What waits for a device waits here."""

    def measured(self, calls: pd.DataFrame, edges: pd.DataFrame) -> dict[str, Any]:
        """Columns for a trace's calls; `edges` says of each which thread's stamps, from 0, are its begin and end."""

    def facts(self) -> dict[str, Any]:
        """What to note of the run."""
