"""Confidence interval of the ratio of two medians, and which of many differences are certain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

CONFIDENCE = 0.95
_MIN_VALUES_TO_CORRELATE = 8  # the autocorrelation of fewer is chance
_DRAWS = 20_000  # Monte Carlo draws of each median: enough that the seed hardly moves the interval's ends


def ratio_interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float] | None:
    """Compute the 95 % confidence interval of the ratio of the second median to the first, by bootstrap.

    The median of a resample is one of the values, and its rank follows a Beta distribution, so the ranks are drawn and
    not the resamples, with a fixed seed. A single outlier moves no end of the interval. Values measured one after
    another resemble each other on a busy machine; so many of them count as their autocorrelation says.

    Args:
        before: times in the order of measurement, of any unit.
        after: times of the second run, in the same unit.

    Returns:
        Low and high end; None if either has fewer than two values, or a median of zero.
    """
    if len(before) < 2 or len(after) < 2 or np.median(before) <= 0:
        return None
    one, two = (_medians(values, stream) for stream, values in enumerate((before, after)))
    ratios = np.divide(two, one, out=np.full(_DRAWS, np.inf), where=one > 0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail], method="nearest")
    return float(low), float(high)


def chance_of_equal(before: np.ndarray, after: np.ndarray) -> float:
    """Compute the probability that equal runs differ as much in rank as these (the rank-sum test's p-value).

    Args:
        before: times in the order of measurement.
        after: times of the second run.

    Returns:
        0 to 1; 1 if either has no values.
    """
    sizes = len(before), len(after)
    if not all(sizes):
        return 1.0
    pairs = np.searchsorted(np.sort(before), after, side="left") + np.searchsorted(np.sort(before), after, side="right")
    excess = float(pairs.sum()) / 2 - sizes[0] * sizes[1] / 2
    spread = math.sqrt(sizes[0] * sizes[1] * (sum(sizes) + 1) / 12)
    independent = min(_effective_size(values) / len(values) for values in (before, after))
    return math.erfc(abs(excess) / spread * math.sqrt(independent) / math.sqrt(2))


def certain_of(chances: Sequence[float]) -> list[bool]:
    """Select the differences of which one in twenty is expected to be by chance (Benjamini and Hochberg, 1995).

    Args:
        chances: `chance_of_equal` of each of the differences that are looked at together.
    """
    ordered = np.sort(np.asarray(chances, dtype=float))
    limits = (1 - CONFIDENCE) * np.arange(1, len(ordered) + 1) / max(1, len(ordered))
    below = np.flatnonzero(ordered <= limits)
    limit = ordered[below[-1]] if len(below) else -1.0
    return [bool(chance <= limit) for chance in chances]


def _medians(values: np.ndarray, stream: int) -> np.ndarray:
    """Draw medians of resamples."""
    ranks = np.floor(_median_quantiles(_effective_size(values), stream) * len(values)).astype(np.int64)
    medians: np.ndarray = np.sort(values)[ranks]
    return medians


def _effective_size(values: np.ndarray) -> int:
    """Return how many independent values tell as much about the median as these do."""
    ordered = np.sort(values)
    ranks = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    centred = ranks - ranks.mean()
    if len(values) < _MIN_VALUES_TO_CORRELATE or not centred.any():
        return len(values)
    correlation = max(0.0, float(centred[1:] @ centred[:-1] / (centred @ centred)))
    return max(1, round(len(values) * (1 - correlation) / (1 + correlation)))


@cache
def _median_quantiles(size: int, stream: int) -> np.ndarray:
    """Draw the quantile of the values that is the median of a resample of `size`, which is made odd."""
    middle = (size + 1) // 2
    return np.random.default_rng([stream, size]).beta(middle, middle, _DRAWS)
