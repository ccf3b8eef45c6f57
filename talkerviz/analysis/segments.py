"""Segments of a run: consecutive calls of one phase or frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from talkerviz.trace.call_tree import parent_rows


class Segment(NamedTuple):
    """Consecutive calls with equal values in some columns.

    Attributes:
        thread: thread of the calls.
        values: the common values, in the order of the columns; None for a missing value.
        start_ns: start of the first call, nanoseconds since the recording began.
        end_ns: end of the last call.
    """

    thread: int
    values: tuple[object, ...]
    start_ns: int
    end_ns: int


def segments(calls: pd.DataFrame, columns: Sequence[str]) -> list[Segment]:
    """Split calls into segments of equal values.

    Segments of one thread are nested or disjoint, as calls are: if a call of one phase makes calls of another phase,
    these are a segment inside the caller's.

    Args:
        calls: a calls table; calls without times are left out.
        columns: columns to compare. Calls without a value in the first one are in no segment.

    Returns:
        The segments, in the order of their first calls.
    """
    calls = calls[calls["host_ns"].notna()]
    rows = np.arange(len(calls))
    kind = calls.groupby(list(columns), dropna=False, observed=True, sort=False).ngroup().to_numpy()
    parent = parent_rows(calls)
    thread = calls["thread"].to_numpy()
    # Siblings side by side; calls without a parent by thread.
    order = np.lexsort((rows, parent, thread))
    kind_of, parent_of, thread_of = kind[order], parent[order], thread[order]
    changes = (np.diff(kind_of) != 0) | (np.diff(parent_of) != 0) | (np.diff(thread_of) != 0)
    begin = np.concatenate([[0], np.flatnonzero(changes) + 1]) if len(order) else np.empty(0, dtype=np.int64)
    differs_from_parent = (parent_of[begin] < 0) | (kind[parent_of[begin]] != kind_of[begin])
    has_value = calls[columns[0]].notna().to_numpy()[order[begin]]
    if not len(begin):
        return []
    start = calls["host_start_ns"].to_numpy(dtype=np.int64)[order]
    end = start + calls["host_ns"].to_numpy(dtype=np.int64)[order]
    ends = np.maximum.reduceat(end, begin)
    kept = np.flatnonzero(differs_from_parent & has_value)
    kept = kept[np.argsort(order[begin[kept]])]
    values = calls[list(columns)].iloc[order[begin[kept]]].astype(object)
    values = values.where(values.notna(), None)
    rows_kept = zip(begin[kept], ends[kept], values.itertuples(index=False, name=None), strict=True)
    return [Segment(int(thread_of[at]), tuple(common), int(start[at]), int(last)) for at, last, common in rows_kept]
