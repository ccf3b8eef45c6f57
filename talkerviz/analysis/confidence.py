"""Confidence interval of the ratio of two means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

CONFIDENCE = 0.95
_DRAWS = 20_000  # Monte Carlo draws of each mean: enough that the seed hardly moves the interval's ends


@dataclass(frozen=True)
class Sample:
    """Size, mean and sample standard deviation of measurements."""

    size: int
    mean: float
    spread: float


def ratio_interval(before: Sample, after: Sample) -> tuple[float, float] | None:
    """Compute the 95 % confidence interval of the ratio of the second mean to the first.

    Each mean has a Student's t distribution with its own spread. For the difference of two such means that is the
    Behrens-Fisher problem; here both means are drawn many times, with a fixed seed, and the interval holds the middle
    95 % of their ratios. With few values it is conservative. Means drawn below zero count as zero, as times are
    positive, so the upper end may be infinite.

    Returns:
        Low and high end; None if either sample has fewer than two values.
    """
    if before.size < 2 or after.size < 2 or before.mean <= 0:
        return None
    one, two = (
        np.maximum(sample.mean + sample.spread / np.sqrt(sample.size) * _draws(sample.size - 1, stream), 0)
        for stream, sample in enumerate((before, after))
    )
    ratios = np.divide(two, one, out=np.full(_DRAWS, np.inf), where=one > 0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail], method="nearest")
    return float(low), float(high)


@cache
def _draws(freedom: int, stream: int) -> np.ndarray:
    return np.random.default_rng([stream, freedom]).standard_t(freedom, _DRAWS)
