"""Which call made which, and which run inside others of the same kind."""

from __future__ import annotations

import numpy as np
import pandas as pd


def callers(calls: pd.DataFrame) -> np.ndarray:
    """Of each call the row of the one that made it; -1 where that is not among them."""
    rows: np.ndarray = pd.Index(calls["call"]).get_indexer(calls["parent"].fillna(-1).astype("int64"))
    return rows


def outermost(calls: pd.DataFrame, kinds: np.ndarray) -> np.ndarray:
    """Of each call whether no caller of it, near or far, is of its own kind: whose times add up to the kind's.

    Args:
        calls: a trace's, or what a selection left of them.
        kinds: a number for each of them.
    """
    parent = callers(calls)
    outer = np.ones(len(calls), dtype=bool)
    above = parent
    while (above >= 0).any():
        outer &= (above < 0) | (kinds[above] != kinds)
        above = np.where(above >= 0, parent[above], -1)
    return outer
