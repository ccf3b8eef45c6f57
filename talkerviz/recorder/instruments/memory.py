"""Device memory that calls allocate, from the counters of the caching allocator; and the host's peak."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from talkerviz.recorder.instruments.base import Instrument, Readings, RunContext, Undo


def _reader(device_type: str) -> Callable[[int], tuple[int, int]]:
    """Return a function of a device that returns the bytes allocated now, and their peak since its last call."""

    def read_cuda(device: int) -> tuple[int, int]:
        counted = torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]
        torch.cuda.reset_peak_memory_stats(device)
        return counted["current"], counted["peak"]

    def read_any(device: int) -> tuple[int, int]:
        counted = torch.accelerator.memory_stats(device)
        torch.accelerator.reset_peak_memory_stats(device)
        return counted["allocated_bytes.all.current"], counted["allocated_bytes.all.peak"]

    return read_cuda if device_type == "cuda" else read_any


class DeviceMemory(Instrument):
    """Instrument that gives `memory_peak_bytes` and `memory_delta_bytes`, for calls of the thread it is attached on.

    Reading the counters takes about 10 µs, so it has a run of its own.

    Args:
        run: the recording.
        read_and_reset: reads a device's counters; by default those of torch's allocator.
    """

    def __init__(self, run: RunContext, read_and_reset: Callable[[int], tuple[int, int]] | None = None) -> None:
        self._thread = run.thread
        self._device = run.devices[0]
        self._read = read_and_reset or _reader(run.device_type)
        self._device_type = run.device_type
        self._current: list[int] = []  # bytes at each stamp
        self._peak: list[int] = []  # bytes since the stamp before

    def attach(self, undo: Undo) -> None:
        """Forget the peak of what ran before."""
        self._own_thread = self._thread()
        try:
            self._read(self._device)
        except (AttributeError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"'memory': torch does not count the memory of {self._device_type} ({reason})") from error

    def stamp(self, entry: bool) -> None:
        """Read the counters."""
        if self._thread() == self._own_thread:
            current, peak = self._read(self._device)
            self._current.append(current)
            self._peak.append(peak)

    def finish(self, calls: pd.DataFrame, edges: pd.DataFrame) -> Readings:
        """Return each call's peak above the bytes allocated at its entry, and the bytes it left allocated."""
        count = len(self._current)
        there = (edges["thread"].to_numpy() == self._own_thread) & (edges["end"].to_numpy() < count)
        begin, end = (np.where(there, edges[name].to_numpy(), 0) for name in ("begin", "end"))
        current = np.array(self._current or [0])
        peak = _range_max(np.array(self._peak or [0]), begin + 1, end + 1)
        columns = {"memory_peak_bytes": peak - current[begin], "memory_delta_bytes": current[end] - current[begin]}
        return Readings(
            {name: pd.arrays.IntegerArray(np.where(there, value, 0), ~there) for name, value in columns.items()}
        )


def _range_max(values: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the maximum of values[begin:end] for many ranges; 0 for an empty one."""
    levels = [values]  # level k holds the maximum of every 2**k neighbours
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
    """Return the peak resident set of this process in bytes; None on a system that does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
