"""Roofline model: the bound of a call by arithmetic, memory or launches (Williams et al. 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

_LAUNCH_BUSY_SHARE = 0.5  # kernels run for less than half of the time
_OVERHEAD_PEAK_SHARE = 0.1  # below a tenth of its peak neither limit explains the time


def roofline(
    flops: pd.Series, moved: pd.Series, time_ns: pd.Series, busy_ns: pd.Series, peaks: Mapping[str, Any]
) -> pd.DataFrame:
    """Compare rows of calls with the device's peak rates.

    Args:
        flops: floating-point operations of each row.
        moved: bytes read and written by each row.
        time_ns: time of each row.
        busy_ns: kernel time of each row; missing if not measured.
        peaks: the fact `peaks` of a trace, with `flops` and `bandwidth` a second; may be empty.

    Returns:
        `intensity`, in FLOP a byte; `of_peak`, the least time that the peaks allow over the measured time, 0 to 1;
        `bound`: `launch` if kernels ran for less than half of the time, else `compute` or `memory`, the limit that
        needs more time. Without kernel times a row that took more than ten times its least time is `overhead`, which
        neither limit explains. Values that cannot be computed are missing.
    """
    flop, size = flops.to_numpy(float, na_value=np.nan), moved.to_numpy(float, na_value=np.nan)
    time, busy = time_ns.to_numpy(float, na_value=np.nan), busy_ns.to_numpy(float, na_value=np.nan)
    nan = np.full(len(flops), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        intensity = np.where(size > 0, flop / size, np.nan)
        computing = flop / peaks["flops"] * 1e9 if peaks else nan
        moving = size / peaks["bandwidth"] * 1e9 if peaks else nan
        of_peak = np.where(time > 0, np.maximum(computing, moving) / time, np.nan)
        launching = busy < _LAUNCH_BUSY_SHARE * time
    limit = np.where(computing > moving, "compute", "memory").astype(object)
    without_busy = np.where(of_peak < _OVERHEAD_PEAK_SHARE, "overhead", limit)
    bound = np.where(np.isnan(busy), without_busy, np.where(launching, "launch", limit))
    unknown = np.isnan(of_peak) & ~(~np.isnan(busy) & launching)
    bound[unknown] = None
    bounds: pd.DataFrame = pd.DataFrame(
        {
            "intensity": pd.array(intensity, dtype="Float64"),
            "of_peak": pd.array(of_peak, dtype="Float64"),
            "bound": pd.array(bound, dtype="string"),
        }
    )
    return bounds
