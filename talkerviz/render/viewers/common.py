"""How files for viewers of time lines are written."""

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
"""How a file's name ends that TensorBoard finds."""


def check_timed(trace: TraceRecord, fmt: str) -> None:
    """Say so if a trace has no times to draw.

    Raises:
        RenderError: it has none.
    """
    if trace.calls["host_ns"].isna().all():
        raise RenderError(f"{fmt} needs times, and this trace has none: record it on a device with --clock auto")


def compact(value: object) -> str:
    """JSON without spaces; letters as they are, since Perfetto shows `\\u` escapes as they stand."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def joined(pieces: Iterable[str]) -> bytes:
    """Pieces of a file behind each other, as UTF-8."""
    raw = io.BytesIO()
    # A name that is no proper text, which a trace in memory can hold, must not stop the rest.
    out = io.TextIOWrapper(raw, encoding="utf-8", errors="replace", newline="\n")
    out.writelines(pieces)
    out.flush()
    return raw.getvalue()


def plain_values(column: pd.Series) -> list[Any]:
    """A column as Python's own values, None where there is none."""
    values: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return values


def lanes(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of each interval the number of its lane, from 0; in a lane intervals lie inside or beside each other."""
    lane = np.zeros(len(start), dtype=np.int64)
    around: list[list[int]] = []  # of each lane, the ends of what is still going on, outermost first
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
    """A call in few characters: `q_proj Linear`, `layers.3 Block`."""
    before, _, last = path.rpartition(".")
    # A number says nothing without what it counts.
    name = f"{before.rpartition('.')[2]}.{last}" if before and last.isdecimal() else last
    # What is no module's call, but a collective, has but one name.
    return name if name == class_name else f"{name} {class_name}"
