"""Lanes of a time line: what overlaps without lying inside each other cannot be drawn in one."""

from __future__ import annotations

import numpy as np


def lanes(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of each interval the number of its lane, from 0; in a lane intervals lie inside or beside each other."""
    lane = np.zeros(len(start), dtype=np.int64)
    around: list[list[int]] = []  # of each lane, the ends of what is still going on, outermost first
    order = np.lexsort((-end, start))
    for row, begin, stop in zip(order.tolist(), start[order].tolist(), end[order].tolist(), strict=True):
        for ends in around:
            while ends and ends[-1] <= begin:
                ends.pop()
        lane[row] = next((at for at, ends in enumerate(around) if not ends or ends[-1] >= stop), len(around))
        if lane[row] == len(around):
            around.append([])
        around[lane[row]].append(stop)
    return lane
