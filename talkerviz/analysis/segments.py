"""Stretches of a run: calls that follow each other in one phase or one frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from talkerviz.trace.call_tree import callers


class Stretch(NamedTuple):
    """Calls that follow each other and have the same values.

    Attributes:
        thread: the thread that they ran in.
        values: what they have in common, in the order asked for; None where there is none.
        start_ns: when the first began, nanoseconds since the recording began.
        end_ns: when the last ended.
    """

    thread: int
    values: tuple[object, ...]
    start_ns: int
    end_ns: int


def stretches(calls: pd.DataFrame, columns: Sequence[str]) -> list[Stretch]:
    """The stretches of a trace's calls, by what stands in some of its columns; none where the first has no value.

    Those of one thread lie inside or beside each other, as calls do: what a call of one phase calls in another is a
    stretch inside that of the caller.
    """
    calls = calls[calls["host_ns"].notna()]
    rows = np.arange(len(calls))
    kind = calls.groupby(list(columns), dropna=False, observed=True, sort=False).ngroup().to_numpy()
    parent = callers(calls)
    thread = calls["thread"].to_numpy()
    # Calls of one caller after each other, those without one by thread.
    order = np.lexsort((rows, parent, thread))
    kind_of, caller, of_thread = kind[order], parent[order], thread[order]
    changes = (np.diff(kind_of) != 0) | (np.diff(caller) != 0) | (np.diff(of_thread) != 0)
    begin = np.concatenate([[0], np.flatnonzero(changes) + 1]) if len(order) else np.empty(0, dtype=np.int64)
    new = (caller[begin] < 0) | (kind[caller[begin]] != kind_of[begin])
    there = calls[columns[0]].notna().to_numpy()[order[begin]]
    if not len(begin):
        return []
    start = calls["host_start_ns"].to_numpy(dtype=np.int64)[order]
    end = start + calls["host_ns"].to_numpy(dtype=np.int64)[order]
    ends = np.maximum.reduceat(end, begin)
    kept = np.flatnonzero(new & there)
    kept = kept[np.argsort(order[begin[kept]])]
    values = calls[list(columns)].iloc[order[begin[kept]]].astype(object)
    values = values.where(values.notna(), None)
    found = zip(begin[kept], ends[kept], values.itertuples(index=False, name=None), strict=True)
    return [Stretch(int(of_thread[at]), tuple(of), int(start[at]), int(last)) for at, last, of in found]
