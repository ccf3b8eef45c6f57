"""Headings, units and number formats of table columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from talkerviz.render.text import AMOUNTS, UNITS, amount_text, factor_text, share_text, size_text, time_text

Scales = tuple[tuple[float, str], ...]
"""Pairs of base units per unit and its name, largest first."""


@dataclass(frozen=True)
class Quantity:
    """Kind of quantity in a column.

    Attributes:
        heading: heading of the column.
        text: function that formats a number with its unit.
        scales: units for a whole column with the unit in its heading.
        decimals: decimals of a number in such a column.
    """

    heading: str
    text: Callable[[Any], str]
    scales: Scales = ((1, ""),)
    decimals: int = 0


_SIZES = (*((scale, f"{prefix}B") for scale, prefix in AMOUNTS), (1.0, "B"))


def _time(heading: str) -> Quantity:
    return Quantity(heading, time_text, UNITS, 3)


_QUANTITIES: Mapping[str, Quantity] = {
    "latency_ns": _time("latency"),
    "real_time_factor": Quantity("real time", factor_text, ((1, "×"),), 3),
    "codes_per_second": Quantity("codes/s", "{:,.1f}".format, decimals=1),
    "talker_ns": _time("talker"),
    "predictor_ns": _time("predictor"),
    "parameters": Quantity("params", amount_text),
    "calls": Quantity("calls", "{:,}".format),
    "total_ns": _time("total"),
    "self_ns": _time("self"),
    "mean_ns": _time("mean"),
    "std_ns": _time("std"),
    "p50_ns": _time("p50"),
    "p95_ns": _time("p95"),
    "p99_ns": _time("p99"),
    "share": Quantity("share", share_text, ((0.01, "%"),), 1),
    "device_ns": _time("device"),
    "busy_ns": _time("busy"),
    "flops": Quantity("FLOP", amount_text, (*AMOUNTS, (1.0, "")), 3),
    "uncounted": Quantity("not counted", "{:,}".format),
    "bytes": Quantity("bytes", size_text, _SIZES, 3),
    "intensity": Quantity("FLOP/byte", "{:,.2f}".format, decimals=2),
    "of_peak": Quantity("of peak", share_text, ((0.01, "%"),), 1),
    "memory_peak_bytes": Quantity("memory", size_text, _SIZES, 3),
    "time_ns": _time("time"),
    "collective_ns": _time("collectives"),
    "wait_ns": _time("waits"),
    "wait_share": Quantity("of its time", share_text, ((0.01, "%"),), 1),
    "lag_ns": _time("ahead"),
    "gbytes_per_s": Quantity("GB/s", "{:,.2f}".format, decimals=2),
    "last_share": Quantity("comes last", share_text, ((0.01, "%"),), 1),
    "caused_ns": _time("others wait"),
    "transfer_ns": _time("transfer"),
}

_UNMEASURED_LEFT_OUT = {*_QUANTITIES, "bound"}
_NEVER_SHOWN = {"parameter_bytes"}
_ONLY_IF_ANY = {"uncounted"}  # left out if all are 0
# Columns without a meaning for such rows: of a single call they are 1 or the total again; a frame mixes all calls.
_MEANINGLESS = {
    "call": {"calls", "mean_ns", "p50_ns", "p95_ns", "p99_ns"},
    "frame": {"mean_ns", "p50_ns", "p95_ns", "p99_ns", "shapes"},
}


def quantity(column: str) -> Quantity | None:
    """Return the quantity in a column; None for a name, a number of an item, or a text."""
    side, _, name = column.rpartition(".")
    found = _QUANTITIES.get(name)
    return Quantity(f"{side} {found.heading}", found.text, found.scales, found.decimals) if found and side else found


def column_of_heading(heading: str) -> str:
    """Return the column that a heading names, such as `parameters` for `params`; other names stay as they are."""
    side, _, name = heading.rpartition(".")
    column = next((column for column, kind in _QUANTITIES.items() if kind.heading == name), name)
    column = column.removesuffix("_ns")
    return f"{side}.{column}" if side else column


def is_number(column: str) -> bool:
    """Return True for a column that is aligned right."""
    return quantity(column) is not None or column in ("call", "frame", "step", "rank")


def shown_columns(summary: pd.DataFrame, by: str) -> list[str]:
    """List the columns to show: those that were measured and have a meaning for such rows."""
    omitted = _NEVER_SHOWN | _MEANINGLESS.get(by, set())
    return [
        name
        for name in summary.columns
        # An unmeasured column would be empty from top to bottom.
        if name not in omitted
        and not (name.rpartition(".")[2] in _ONLY_IF_ANY and not summary[name].fillna(0).any())
        and not (name.rpartition(".")[2] in _UNMEASURED_LEFT_OUT and summary[name].isna().all())
    ]
