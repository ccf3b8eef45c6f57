"""Traces of ranks made by hand, with known waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sample_trace import call, make_trace, tensor

from talkerviz.api import Trace
from talkerviz.trace.calls_table import calls_frame


@dataclass(frozen=True)
class Meeting:
    """One collective among all ranks: when each comes, and when each goes on, on a clock that all share."""

    came: tuple[int, ...]
    left: tuple[int, ...]
    kind: str = "all_reduce"
    place: str = "net.layers.0"


def meeting(came: Sequence[int], transfer: int, **more: Any) -> Meeting:
    """One that all leave so long after the last has come."""
    return Meeting(tuple(came), tuple(max(came) + transfer for _ in came), **more)


def rank_traces(
    meetings: Sequence[Meeting],
    ahead: Sequence[int],
    hosts: Sequence[str] | None = None,
    errors: Sequence[int] | None = None,
    **facts: Any,
) -> list[Trace]:
    """Return a trace of each rank: a call of the net around each collective.

    Args:
        meetings: what happens, in order, on true time.
        ahead: by how many nanoseconds each rank's clock is ahead of true time.
        hosts: what tells hosts apart; by default each rank is on its own.
        errors: error of each rank's measured difference to rank 0's clock, ns; None if it did not measure.
        facts: further facts of each trace.
    """
    count = len(ahead)
    every = f"0-{count - 1}"
    return [
        _trace(
            rank,
            _rows(rank, meetings, every),
            process={
                "rank": rank,
                "world_size": count,
                "local_rank": rank,
                "host": f"host{rank}" if hosts is None else hosts[rank],
                "boot": f"boot{rank}" if hosts is None else hosts[rank],
                "backend": "gloo",
                "origin_ns": ahead[rank],
                "unix_ns": 1_700_000_000_000_000_000,
                **_asked(rank, ahead, errors),
            },
            **facts,
        )
        for rank in range(count)
    ]


def _trace(rank: int, rows: list[Any], **facts: Any) -> Trace:
    trace = make_trace(rows, **facts)
    more = {name: [row.get(name) for row in rows] for name in ("peers", "collective")}
    return replace(trace, calls=calls_frame(trace.calls.assign(rank=rank, **more)))


def _asked(rank: int, ahead: Sequence[int], errors: Sequence[int] | None) -> dict[str, int]:
    if errors is None:
        return {}
    return {"offset_ns": ahead[0] - ahead[rank] + errors[rank], "offset_error_ns": abs(errors[rank])}


def _rows(rank: int, meetings: Sequence[Meeting], every: str) -> list[Any]:
    rows: list[Any] = []
    for number, one in enumerate(meetings):
        start, end = one.came[rank], one.left[rank]
        root = call(2 * number, None, 0, "net", "Net", end - start + 200, 200, host_start_ns=start - 100, frame=number)
        name = f"{one.place}.{one.kind}"
        inner = call(2 * number + 1, 2 * number, 1, name, one.kind, end - start, end - start, host_start_ns=start)
        moved = (tensor("0", 8),) if one.kind != "barrier" else ()
        rows += [
            root,
            inner | {"frame": number, "peers": every, "collective": number, "inputs": moved, "outputs": moved},
        ]
    return rows
