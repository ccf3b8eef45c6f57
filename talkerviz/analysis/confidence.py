"""How far a ratio of two means can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

CONFIDENCE = 0.95
_DRAWS = 20_000


@dataclass(frozen=True)
class Sample:
    """What is known of some measurements: how many, their mean and their standard deviation (of a sample)."""

    size: int
    mean: float
    spread: float


def ratio_interval(before: Sample, after: Sample) -> tuple[float, float] | None:
    """The 95 % interval of the ratio of the second mean to the first; None where either has fewer than two values.

    Each mean is uncertain as Student's t says, with its own spread. For the difference of two such means that is the
    Behrens-Fisher problem; here both are drawn many times, with a fixed seed, and the middle 95 % of the ratios taken.
    With few values this is wider than need be rather than narrower. A mean below zero counts as zero, as times are
    positive, so the upper end may be infinite.
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
