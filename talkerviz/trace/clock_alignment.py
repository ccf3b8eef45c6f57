"""Put the clocks of several ranks on one line.

Each rank's times are those of its host's monotonic clock. Processes on one host share it. Of others it is known

- how far each was from rank 0's as the recording began, if they asked (see `recorder/distributed/clock_sync.py`),
- and that a collective is over on no rank before it has begun on all, and a message come before it was sent: so each of
  them says of two clocks by how much at most one is ahead of the other.

Together these leave a stretch for how far two clocks are apart; its middle is taken, and half its length is by how much
that can be wrong. Ranks that have nothing to do with each other are put together by way of others, the surest first.
Where nothing is known, the hosts' wall clocks must do. Clocks are taken to run equally fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.analysis.collective_waits import ends_after_all_began, parts_of_collectives
from talkerviz.trace.trace import TraceRecord

HOST, EXCHANGE, COLLECTIVES, WALL = "one host's clock", "exchange", "collectives", "wall clocks"


@dataclass(frozen=True)
class Alignment:
    """How ranks' clocks stand to each other.

    Attributes:
        shift_ns: what to add to the times of each trace, so that they count from when the first recording began.
        error_ns: by how much each can be wrong against the first; None where nothing is known of it.
        by: what told: of `HOST`, `EXCHANGE`, `COLLECTIVES`, `WALL`.
        early_ns: by how much a collective is over too early even so, at the worst: clocks do not run equally fast.
    """

    shift_ns: tuple[int, ...]
    error_ns: tuple[int | None, ...]
    by: tuple[str, ...]
    early_ns: int


def align(traces: Sequence[TraceRecord]) -> Alignment:
    """How the clocks of traces stand to each other, which have the fact `process`; one of each rank."""
    processes = [trace.facts["process"] for trace in traces]
    origin = np.array([process["origin_ns"] for process in processes], dtype=float)
    ahead = _most_ahead(traces, origin)
    middle, error, by = _apart(processes, ahead)

    count = len(traces)
    offset, doubt = np.zeros(count), np.full(count, np.inf)
    doubt[0] = 0.0
    used: set[str] = set()
    reached = np.zeros(count, dtype=bool)
    source = [set[str]() for _ in range(count)]
    while True:
        at = int(np.argmin(np.where(reached, np.inf, doubt)))
        if reached[at] or not np.isfinite(doubt[at]):
            break
        reached[at] = True
        used |= source[at]
        surer = ~reached & (doubt[at] + error[at] < doubt)
        offset[surer] = offset[at] + middle[at, surer]
        doubt[surer] = doubt[at] + error[at, surer]
        for other in np.flatnonzero(surer):
            source[other] = by[at][other]
    if not reached.all():
        used.add(WALL)
        # Whole numbers: a float of so many nanoseconds is not exact.
        wall = [process["unix_ns"] - process["origin_ns"] for process in processes]
        offset[~reached] = np.array([one - wall[0] for one in wall])[~reached]
    began = origin + offset
    early = float(-(ahead - (offset[None, :] - offset[:, None])).min(initial=0.0))
    return Alignment(
        tuple(int(shift) for shift in np.rint(began - began.min())),
        tuple(int(one) if known else None for one, known in zip(doubt, reached, strict=True)),
        tuple(sorted(used)),
        round(max(early, 0.0)),
    )


def _most_ahead(traces: Sequence[TraceRecord], origin: np.ndarray) -> np.ndarray:
    """By how much, at most, what is to be added to the clock of column j is more than what is to that of row i."""
    found = []
    for place, (trace, began) in enumerate(zip(traces, origin, strict=True)):
        parts = parts_of_collectives(trace.calls)
        start = parts["start_ns"].where(parts["begins"])
        proves = parts["done"] & (parts["class"].map(ends_after_all_began) | (parts["class"] == "recv"))
        ends = parts.assign(start=start + began, end=parts["end_ns"].where(proves) + began, trace=place)
        found.append(
            ends.groupby(["peers", "collective", "trace"]).agg({"start": "min", "end": "max", "class": "first"})
        )
    rows = pd.concat(found).reset_index()
    kinds = rows["class"].replace({"recv": "send"})
    rows = rows[kinds.groupby([rows["peers"], rows["collective"]]).transform("nunique") == 1]
    numbers = rows.groupby(["peers", "collective"]).ngroup()
    count = len(traces)
    start, end = (np.full((numbers.max() + 1 if len(rows) else 0, count), np.inf * sign) for sign in (-1, 1))
    at = numbers.to_numpy(), rows["trace"].to_numpy()
    start[at], end[at] = rows["start"].fillna(-np.inf), rows["end"].fillna(np.inf)
    # A message's beginning tells nothing at the rank that it comes to, nor its end where it comes from.
    return np.stack([(end[:, [row]] - start).min(axis=0, initial=np.inf) for row in range(count)])


def _apart(
    processes: Sequence[Mapping[str, Any]], ahead: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[list[set[str]]]]:
    """For each two ranks how far their clocks are apart, by how much that can be wrong, and what told."""
    count = len(processes)
    middle, error = np.zeros((count, count)), np.full((count, count), np.inf)
    by = [[set[str]() for _ in range(count)] for _ in range(count)]
    for one in range(count):
        for two in range(count):
            ours, theirs = processes[one], processes[two]
            if ours["boot"] == theirs["boot"]:
                middle[one, two], error[one, two], by[one][two] = 0.0, 0.0, {HOST}
                continue
            low, high = -ahead[two, one], ahead[one, two]
            if np.isfinite([low, high]).all():
                by[one][two] |= {COLLECTIVES}
            if "offset_ns" in ours and "offset_ns" in theirs:
                by[one][two] |= {EXCHANGE}
                asked = theirs["offset_ns"] - ours["offset_ns"]
                doubt = theirs["offset_error_ns"] + ours["offset_error_ns"]
                # Where collectives contradict it, clocks have drifted since: it is still right for the beginning.
                if max(low, asked - doubt) <= min(high, asked + doubt):
                    low, high = max(low, asked - doubt), min(high, asked + doubt)
                else:
                    low, high = asked - doubt, asked + doubt
            if np.isfinite([low, high]).all():
                middle[one, two], error[one, two] = (low + high) / 2, abs(high - low) / 2
    return middle, error, by
