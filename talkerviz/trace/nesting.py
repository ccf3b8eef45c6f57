"""Which calls run inside others of the same kind."""

from __future__ import annotations

import numpy as np
import pandas as pd


def outermost(calls: pd.DataFrame, kinds: np.ndarray) -> np.ndarray:
    """Of each call whether no caller of it, near or far, is of its own kind: whose times add up to the kind's.

    Args:
        calls: a trace's, or what a selection left of them.
        kinds: a number for each of them.
    """
    row_of = pd.Series(np.arange(len(calls)), index=calls["call"].to_numpy())
    parent = calls["parent"].map(row_of).to_numpy(dtype=float, na_value=np.nan)
    parent = np.where(np.isnan(parent), -1, parent).astype(int)
    outer = np.ones(len(calls), dtype=bool)
    above = parent
    while (above >= 0).any():
        outer &= (above < 0) | (kinds[above] != kinds)
        above = np.where(above >= 0, parent[above], -1)
    return outer
