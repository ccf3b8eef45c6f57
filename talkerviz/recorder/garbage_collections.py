"""Timer of Python's garbage collections, which run inside whatever module happens to allocate."""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any


class GarbageCollectionTimer:
    """Times garbage collections from `start` to `stop`.

    Args:
        collected: called after each collection with (generation, nanoseconds).
    """

    def __init__(self, collected: Callable[[int, int], None]) -> None:
        self._collected = collected
        self._began_ns = 0

    def start(self) -> None:
        """Time collections from here on."""
        gc.callbacks.append(self._call)

    def stop(self) -> None:
        """Stop timing; stopping twice does no harm."""
        if self._call in gc.callbacks:
            gc.callbacks.remove(self._call)

    def _call(self, stage: str, info: dict[str, Any]) -> None:
        if stage == "start":
            self._began_ns = perf_counter_ns()
        elif self._began_ns:
            self._collected(info["generation"], perf_counter_ns() - self._began_ns)
            self._began_ns = 0
