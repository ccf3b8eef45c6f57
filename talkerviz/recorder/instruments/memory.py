"""Device memory: what the caching allocator counted between the edges of calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch


def _read_and_reset(device: int) -> tuple[int, int]:
    """Bytes allocated now, and the most since this was last asked."""
    counted = torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]
    torch.cuda.reset_peak_memory_stats(device)
    return counted["current"], counted["peak"]


class MemoryMeter:
    """A gauge that gives `memory_peak_bytes` and `memory_delta_bytes`, for the thread that it is started on.

    Reading the counters takes some ten microseconds, so this is done in a run of its own.
    """

    def __init__(
        self,
        thread: Callable[[], int],
        device: int,
        read_and_reset: Callable[[int], tuple[int, int]] = _read_and_reset,
    ) -> None:
        self._thread = thread
        self._device = device
        self._read = read_and_reset
        self._current: list[int] = []  # at each edge
        self._peak: list[int] = []  # since the edge before

    def start(self) -> None:
        """Forget the peak of what was before."""
        self._own_thread = self._thread()
        self._read(self._device)

    def stamp(self, beginning: bool) -> None:
        """Read the counters."""
        if self._thread() == self._own_thread:
            current, peak = self._read(self._device)
            self._current.append(current)
            self._peak.append(peak)

    def stop(self) -> None:
        """Nothing is left to read."""

    def measured(self, calls: pd.DataFrame, edges: pd.DataFrame) -> dict[str, Any]:
        """The peak above what was allocated as the call began, and what it left allocated."""
        count = len(self._current)
        there = (edges["thread"].to_numpy() == self._own_thread) & (edges["end"].to_numpy() < count)
        begin, end = (np.where(there, edges[name].to_numpy(), 0) for name in ("begin", "end"))
        current = np.array(self._current or [0])
        peak = _range_max(np.array(self._peak or [0]), begin + 1, end + 1)
        return {
            "memory_peak_bytes": pd.arrays.IntegerArray(np.where(there, peak - current[begin], 0), ~there),
            "memory_delta_bytes": pd.arrays.IntegerArray(np.where(there, current[end] - current[begin], 0), ~there),
        }

    def facts(self) -> dict[str, Any]:
        """Nothing to note."""
        return {}


def _range_max(values: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The largest of values[begin:end] for many ranges; 0 for an empty one."""
    levels = [values]  # level k holds the largest of every 2**k neighbours
    while len(levels[-1]) > 1 << (len(levels) - 1):
        last, step = levels[-1], 1 << (len(levels) - 1)
        levels.append(np.maximum(last[:-step], last[step:]))
    largest = np.zeros(len(begin), dtype=np.int64)
    width = end - begin
    for level, table in enumerate(levels):
        here = np.flatnonzero((width >= 1 << level) & (width < 2 << level))
        largest[here] = np.maximum(table[begin[here]], table[end[here] - (1 << level)])
    return largest


def peak_bytes() -> int | None:
    """The greatest resident set since it began, in bytes; None on a system that does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
