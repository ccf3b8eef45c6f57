"""Number formats: times, amounts, shares, sizes, factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

AMOUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))  # nanoseconds per unit


def _three_digits(value: float, units: Sequence[tuple[float, str]]) -> str:
    # Compared after rounding: 999,999 ns is 1.00 ms, not 1000 µs.
    scale, unit = next((pair for pair in units if abs(value) >= pair[0] * 0.9995), units[-1])
    scaled = value / scale
    digits = 0 if scale == 1 else 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:,.{digits}f} {unit}".rstrip()


def time_text(ns: Any) -> str:
    """Format nanoseconds as `1.23 ms`, three digits; empty for a missing value."""
    return "" if pd.isna(ns) else _three_digits(ns, UNITS)


def amount_text(amount: Any) -> str:
    """Format a count as `1.23 G`, three digits, decimal prefixes; empty for a missing value."""
    return "" if pd.isna(amount) else _three_digits(amount, (*AMOUNTS, (1, "")))


def share_text(share: Any) -> str:
    """Format a share of 1 as `12.3 %`; empty for a missing value."""
    return "" if pd.isna(share) else f"{share * 100:.1f} %"


def size_text(size: Any) -> str:
    """Format bytes as `1.23 GB`, three digits, decimal prefixes; empty for a missing value."""
    text = amount_text(size)
    return f"{text}B" if " " in text else f"{text} B" if text else ""


def factor_text(factor: Any) -> str:
    """Format a factor as `0.0579×`, three digits; empty for a missing value."""
    if pd.isna(factor):
        return ""
    return f"{factor:,.0f}×" if factor >= 99.95 else f"{factor:#.3g}×"
