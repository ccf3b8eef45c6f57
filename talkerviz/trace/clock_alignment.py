"""Alignment of several ranks' clocks on one time line.

Each rank's times are those of its host's monotonic clock. Processes on one host share that clock. Between hosts there
are two sources of information:

- the exchange: each rank measured its offset to rank 0 as the recording began (`recorder/distributed/clock_sync.py`);
- collectives: a collective ends on no rank before it has begun on all, and a message arrives after it was sent, so each
  of them bounds how far one clock can be ahead of another.

Together these give an interval for the offset between two clocks. Its middle is the estimate, half its length the
error. Ranks without a common collective are aligned by way of other ranks, the smallest error first. Ranks without any
such information are aligned by their hosts' wall clocks. All clocks are assumed to run equally fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.trace.collectives import KEY, collective_parts, is_barrier_like, parts_too_early
from talkerviz.trace.trace import TraceRecord

HOST, EXCHANGE, COLLECTIVES, WALL = "one host's clock", "exchange", "collectives", "wall clocks"


@dataclass(frozen=True)
class Alignment:
    """Offsets between the clocks of several ranks.

    Attributes:
        shift_ns: what to add to each trace's times, so that 0 is the start of the first recording.
        error_ns: bound of each shift's error against rank 0; None if unknown.
        by: sources of information that were used: of `HOST`, `EXCHANGE`, `COLLECTIVES`, `WALL`.
        early_ns: the most by which a collective still ends before it has begun on all ranks of other hosts: a measure
            of clock drift, or of collectives that do not belong together.
        mispaired: number of collectives that end on one rank before they have begun on another of its host, and so do
            not belong together.
    """

    shift_ns: tuple[int, ...]
    error_ns: tuple[int | None, ...]
    by: tuple[str, ...]
    early_ns: int
    mispaired: int


def align(traces: Sequence[TraceRecord]) -> Alignment:
    """Estimate the offsets between the clocks of several ranks.

    Args:
        traces: one trace a rank, each with the fact `process`.
    """
    processes = [trace.facts["process"] for trace in traces]
    origin = np.array([process["origin_ns"] for process in processes], dtype=float)
    parts = [
        collective_parts(trace.calls).assign(host=process["boot"])
        for trace, process in zip(traces, processes, strict=True)
    ]
    most_ahead = _bounds_of_collectives(parts, origin)
    middle, error, by = _pairwise_offsets(processes, most_ahead)

    # Shortest paths from rank 0 (Dijkstra), with errors as lengths.
    count = len(traces)
    offset, total_error = np.zeros(count), np.full(count, np.inf)
    total_error[0] = 0.0
    used: set[str] = set()
    reached = np.zeros(count, dtype=bool)
    source = [set[str]() for _ in range(count)]
    while True:
        rank = int(np.argmin(np.where(reached, np.inf, total_error)))
        if reached[rank] or not np.isfinite(total_error[rank]):
            break
        reached[rank] = True
        used |= source[rank]
        improved = ~reached & (total_error[rank] + error[rank] < total_error)
        offset[improved] = offset[rank] + middle[rank, improved]
        total_error[improved] = total_error[rank] + error[rank, improved]
        for other in np.flatnonzero(improved):
            source[other] = by[rank][other]
    if not reached.all():
        used.add(WALL)
        # As integers: a float64 holds nanoseconds since 1970 to 256 ns only.
        wall = [process["unix_ns"] - process["origin_ns"] for process in processes]
        offset[~reached] = np.array([ns - wall[0] for ns in wall])[~reached]
    began = origin + offset
    shift = np.rint(began - began.min())
    slack = most_ahead - (offset[None, :] - offset[:, None])
    boots = np.array([process["boot"] for process in processes], dtype=object)
    early = -float(slack[boots[:, None] != boots[None, :]].min(initial=0.0))
    on_one_line = [
        table.assign(start_ns=table["start_ns"] + ns, end_ns=table["end_ns"] + ns)
        for table, ns in zip(parts, shift, strict=True)
    ]
    return Alignment(
        tuple(int(ns) for ns in shift),
        tuple(int(ns) if known else None for ns, known in zip(total_error, reached, strict=True)),
        tuple(sorted(used)),
        round(max(early, 0.0)),
        len(parts_too_early(pd.concat(on_one_line))),
    )


def _bounds_of_collectives(parts_of: Sequence[pd.DataFrame], origin: np.ndarray) -> np.ndarray:
    """Return upper bounds of the offset of clock [column] less the offset of clock [row]; infinite without one."""
    tables = []
    for number, (parts, began) in enumerate(zip(parts_of, origin, strict=True)):
        start = parts["start_ns"].where(parts["begins"])
        is_bound = parts["done"] & (parts["class"].map(is_barrier_like) | (parts["class"] == "recv"))
        ends = parts.assign(start=start + began, end=parts["end_ns"].where(is_bound) + began, trace=number)
        tables.append(ends.groupby([*KEY, "trace"]).agg({"start": "min", "end": "max", "class": "first"}))
    rows = pd.concat(tables).reset_index()
    kinds = rows["class"].replace({"recv": "send"})
    rows = rows[kinds.groupby([rows[name] for name in KEY]).transform("nunique") == 1]
    numbers = rows.groupby(KEY).ngroup()
    count = len(parts_of)
    start, end = (np.full((numbers.max() + 1 if len(rows) else 0, count), np.inf * sign) for sign in (-1, 1))
    cells = numbers.to_numpy(), rows["trace"].to_numpy()
    # The start of a message bounds nothing at its receiver, nor does its end at its sender.
    start[cells], end[cells] = rows["start"].fillna(-np.inf), rows["end"].fillna(np.inf)
    return np.stack([(end[:, [row]] - start).min(axis=0, initial=np.inf) for row in range(count)])


def _pairwise_offsets(
    processes: Sequence[Mapping[str, Any]], most_ahead: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[list[set[str]]]]:
    """Return the offset of each pair of clocks, its error, and the sources of information."""
    count = len(processes)
    middle, error = np.zeros((count, count)), np.full((count, count), np.inf)
    by = [[set[str]() for _ in range(count)] for _ in range(count)]
    for one in range(count):
        for two in range(count):
            ours, theirs = processes[one], processes[two]
            if ours["boot"] == theirs["boot"]:
                middle[one, two], error[one, two], by[one][two] = 0.0, 0.0, {HOST}
                continue
            low, high = -most_ahead[two, one], most_ahead[one, two]
            if np.isfinite([low, high]).all():
                by[one][two] |= {COLLECTIVES}
            if "offset_ns" in ours and "offset_ns" in theirs:
                by[one][two] |= {EXCHANGE}
                measured = theirs["offset_ns"] - ours["offset_ns"]
                doubt = theirs["offset_error_ns"] + ours["offset_error_ns"]
                # If collectives contradict the exchange, the clocks have drifted since: it still holds for the start.
                if max(low, measured - doubt) <= min(high, measured + doubt):
                    low, high = max(low, measured - doubt), min(high, measured + doubt)
                else:
                    low, high = measured - doubt, measured + doubt
            if np.isfinite([low, high]).all():
                middle[one, two], error[one, two] = (low + high) / 2, abs(high - low) / 2
    return middle, error, by
