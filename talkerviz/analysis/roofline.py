"""What limits a call: the device's arithmetic, its memory, or neither (Williams et al. 2009, the roofline model)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

_BUSY = 0.5
_EXPLAINED = 0.1


def roofline(
    flops: pd.Series, moved: pd.Series, time_ns: pd.Series, busy_ns: pd.Series, peaks: Mapping[str, Any]
) -> pd.DataFrame:
    """How rows of calls stand to the device's limits.

    Args:
        flops: floating-point operations of each row.
        moved: bytes it must read and write.
        time_ns: how long it took.
        busy_ns: how long its kernels ran in that time; missing where that was not measured.
        peaks: `flops` and `bandwidth` a second, as in a trace's facts; may be empty.

    Returns:
        `intensity`, FLOP a byte; `of_peak`, the least time that the limits allow over the time it took, 0 to 1;
        `bound`: `launch` where kernels ran less than half of the time; else `compute` or `memory`, whichever limit is
        the nearer one. Without a measurement of kernels a row that took more than ten times its least time is
        `overhead`: neither limit explains it. Missing where the figures for it are.
    """
    flop, size = flops.to_numpy(float, na_value=np.nan), moved.to_numpy(float, na_value=np.nan)
    time, busy = time_ns.to_numpy(float, na_value=np.nan), busy_ns.to_numpy(float, na_value=np.nan)
    nan = np.full(len(flops), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        intensity = np.where(size > 0, flop / size, np.nan)
        computing = flop / peaks["flops"] * 1e9 if peaks else nan
        moving = size / peaks["bandwidth"] * 1e9 if peaks else nan
        of_peak = np.where(time > 0, np.maximum(computing, moving) / time, np.nan)
        launching = busy < _BUSY * time
    side = np.where(computing > moving, "compute", "memory").astype(object)
    bound = np.where(
        np.isnan(busy), np.where(of_peak < _EXPLAINED, "overhead", side), np.where(launching, "launch", side)
    )
    unknown = np.isnan(of_peak) & ~(~np.isnan(busy) & launching)
    bound[unknown] = None
    found: pd.DataFrame = pd.DataFrame(
        {
            "intensity": pd.array(intensity, dtype="Float64"),
            "of_peak": pd.array(of_peak, dtype="Float64"),
            "bound": pd.array(bound, dtype="string"),
        }
    )
    return found
