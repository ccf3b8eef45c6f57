"""Which calls of a run were made inside what another run of the same program saw as one call.

Code that is compiled or fused is one call of its module. Where operators are watched it runs as it was written, and its
modules are called as ever.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from talkerviz.trace.call_tree import callers


def calls_in_both(one: pd.DataFrame, two: pd.DataFrame, regions: Collection[str]) -> np.ndarray:
    """Of each call of `two` whether it is to have a counterpart in `one`: all but those that a region hides there.

    Part of a region may have run as it was written in `one` as well, as the talker's does while the prompt is read: of
    the calls inside, those are left out that `one` has not, in the same call.

    Args:
        one: calls in the order in which they began.
        two: those of the other run.
        regions: paths of modules that may be one call in `one`.
    """
    both = np.ones(len(two), dtype=bool)
    if not regions:
        return both
    inside = _inside(two, regions)
    numbers, parents = one["call"].tolist(), one["parent"].fillna(-1).tolist()
    paths = one["path"].tolist()
    counterpart = {-1: -1}  # of a call of `two`, or else of the nearest around it that has one
    following = 0  # the row of `one` that is next
    for row, (call, caller, path, hidden) in enumerate(
        zip(two["call"].tolist(), two["parent"].fillna(-1).tolist(), two["path"].tolist(), inside.tolist(), strict=True)
    ):
        around = counterpart.get(caller, -1)
        there = following < len(one)
        if hidden and not (there and paths[following] == path and parents[following] == around):
            both[row] = False
            counterpart[call] = around
        else:
            counterpart[call] = numbers[following] if there else -1
            following += 1
    return both


def _inside(calls: pd.DataFrame, regions: Collection[str]) -> np.ndarray:
    """Of each call whether its module is in a region, or it was made by one, whatever its own path is."""
    categories = [str(path) for path in calls["path"].cat.categories]
    below = [any(path.startswith(f"{region}.") for region in regions) for path in categories]
    region = [at or path in regions for at, path in zip(below, categories, strict=True)]
    codes = calls["path"].cat.codes.to_numpy()
    inside: np.ndarray = np.array(below, dtype=bool)[codes]
    begins = np.array(region, dtype=bool)[codes]
    caller = callers(calls)
    for row in np.flatnonzero(caller >= 0).tolist():
        inside[row] |= begins[caller[row]]
        begins[row] |= inside[row]
    return inside
