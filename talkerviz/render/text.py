"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

AMOUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))  # by how many nanoseconds they are


def _three_digits(value: float, units: Sequence[tuple[float, str]]) -> str:
    # Compared after rounding, so that 999,999 ns is 1.00 ms and not 1000 µs.
    scale, unit = next((one for one in units if abs(value) >= one[0] * 0.9995), units[-1])
    scaled = value / scale
    digits = 0 if scale == 1 else 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:,.{digits}f} {unit}".rstrip()


def time_text(ns: Any) -> str:
    """Nanoseconds as `1.23 ms`, three digits; empty where there is none."""
    return "" if pd.isna(ns) else _three_digits(ns, UNITS)


def amount_text(amount: Any) -> str:
    """A count of operations or bytes as `1.23 G`, three digits, in thousands; empty where there is none."""
    return "" if pd.isna(amount) else _three_digits(amount, (*AMOUNTS, (1, "")))


def share_text(share: Any) -> str:
    """A share of one as `12.3 %`; empty where there is none."""
    return "" if pd.isna(share) else f"{share * 100:.1f} %"


def size_text(size: Any) -> str:
    """Bytes as `1.23 GB`, three digits, in thousands; empty where there is none."""
    text = amount_text(size)
    return f"{text}B" if " " in text else f"{text} B" if text else ""


def factor_text(factor: Any) -> str:
    """How many times something is, as `0.0579×`, three digits; empty where there is none."""
    if pd.isna(factor):
        return ""
    return f"{factor:,.0f}×" if factor >= 99.95 else f"{factor:#.3g}×"
