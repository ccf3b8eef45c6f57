"""Helpers for files of timeline viewers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.render.charts.graphviz import RenderError
from talkerviz.trace import TraceRecord

TENSORBOARD_SUFFIX = ".pt.trace.json"
"""Ending of file names that TensorBoard finds."""


def check_timed(trace: TraceRecord, fmt: str) -> None:
    """Reject a trace without times.

    Raises:
        RenderError: the trace has no times.
    """
    if trace.calls["host_ns"].isna().all():
        raise RenderError(f"{fmt} needs times, and this trace has none: record it on a device with --clock auto")


def compact(value: object) -> str:
    r"""Encode JSON without spaces and without `\u` escapes, which Perfetto shows undecoded."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def joined(pieces: Iterable[str]) -> bytes:
    """Concatenate pieces of a file, as UTF-8."""
    raw = io.BytesIO()
    # A trace in memory can hold names with lone surrogates, which UTF-8 cannot encode.
    out = io.TextIOWrapper(raw, encoding="utf-8", errors="replace", newline="\n")
    out.writelines(pieces)
    out.flush()
    return raw.getvalue()


def plain_values(column: pd.Series) -> list[Any]:
    """List a column's values as Python objects, None for missing ones."""
    values: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return values


def lanes(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Assign each interval a lane, from 0, in which intervals are nested or disjoint."""
    lane = np.zeros(len(start), dtype=np.int64)
    around: list[list[int]] = []  # ends of the open intervals of each lane, outermost first
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


def call_name(path: str, class_name: str) -> str:
    """Format a call's name briefly: `q_proj Linear`, `layers.3 Block`."""
    before, _, last = path.rpartition(".")
    # A number alone has no meaning, so its list's name stays.
    name = f"{before.rpartition('.')[2]}.{last}" if before and last.isdecimal() else last
    # A collective is no module's call; its name and class are equal.
    return name if name == class_name else f"{name} {class_name}"
