"""Numbers as people read them."""

from __future__ import annotations

from typing import Any

import pandas as pd

AMOUNTS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))  # by how many nanoseconds they are


def time_text(ns: Any) -> str:
    """Nanoseconds as `1.23 ms`, three digits; empty where there is none."""
    if pd.isna(ns):
        return ""
    # Compared after rounding, so that 999,999 ns is 1.00 ms and not 1000 µs.
    scale, unit = next(((scale, unit) for scale, unit in UNITS if ns >= scale * 0.9995), UNITS[-1])
    if scale == 1:
        return f"{ns:.0f} ns"
    value = ns / scale
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def amount_text(amount: Any) -> str:
    """A count of operations or bytes as `1.23 G`, three digits, in thousands; empty where there is none."""
    if pd.isna(amount):
        return ""
    scale, unit = next(((s, unit) for s, unit in AMOUNTS if abs(amount) >= s * 0.9995), (1, ""))
    if scale == 1:
        return f"{amount:,.0f}"
    value = amount / scale
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f} {unit}"


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
