"""Waiting time in collectives and messages between ranks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from talkerviz.trace.collectives import KEY, collective_parts, ranks_among
from talkerviz.trace.event_log import MESSAGES
from talkerviz.trace.trace import TraceRecord


def collective_waits(trace: TraceRecord) -> pd.DataFrame:
    """Return the parts of timed collectives that are in the traces of all their ranks, with their waiting time.

    While a rank does something else between beginning a collective and waiting for it, it does not count as waiting.

    Args:
        trace: a merged trace.

    Returns:
        The columns of `collective_parts`; `last_ns`, when the last rank began the collective; `last`, that rank;
        `last_call`, the call with which it began; `wait_ns`, the time of this part before `last_ns`; `transfer_ns`, the
        time of this part after it. `attrs["left_out"]` is the number of collectives missing from some traces,
        `attrs["out_of_step"]` the number of collectives of different kinds on different ranks.
    """
    parts = collective_parts(trace.calls)
    parts = parts[np.isfinite(parts["start_ns"].to_numpy())]
    begun = parts[parts["begins"]].drop_duplicates([*KEY, "rank"])
    groups = begun.groupby(KEY, sort=False)
    expected = begun["peers"].map({peers: ranks_among(peers) for peers in begun["peers"].unique()}).to_numpy()
    complete = groups["rank"].transform("size").to_numpy() == expected
    differs = (groups["class"].transform("nunique").to_numpy() > 1) & ~begun["class"].isin(MESSAGES).to_numpy()
    left_out, out_of_step = (len(begun[rows].drop_duplicates(KEY)) for rows in (~complete, complete & differs))
    begun = begun[complete & ~differs]

    last = begun.sort_values("start_ns", kind="stable").drop_duplicates(KEY, keep="last").set_index(KEY)
    lasts = last.reindex(pd.MultiIndex.from_frame(parts[KEY]))
    last_ns = lasts["start_ns"].to_numpy()
    start, end = parts["start_ns"].to_numpy(), parts["end_ns"].to_numpy()
    known = np.isfinite(last_ns)
    waits: pd.DataFrame = parts.assign(
        last_ns=last_ns,
        last=lasts["rank"].to_numpy(),
        last_call=lasts["call"].to_numpy(),
        wait_ns=np.clip(np.minimum(end, last_ns) - start, 0, None),
        transfer_ns=np.clip(end - np.maximum(start, last_ns), 0, None),
    )[known].astype(dict.fromkeys(_WHOLE_NUMBERS, "int64"))
    waits.attrs |= {"left_out": left_out, "out_of_step": out_of_step}
    return waits


_WHOLE_NUMBERS = ("start_ns", "end_ns", "last_ns", "wait_ns", "transfer_ns", "last", "last_call")


def waits_by_rank(waits: pd.DataFrame) -> pd.DataFrame:
    """Sum `collective_waits` over the parts of each rank in each collective.

    Args:
        waits: the table that `collective_waits` returns.

    Returns:
        A row a rank and collective: `peers`, `collective`, `rank`, `phase`, `class`, `module`, `last_ns`, `last`;
        `start_ns`, when the rank began it; `end_ns`, when the rank went on; `bytes`; `wait_ns` and `transfer_ns`, sums
        over its parts.
    """
    sums = waits.groupby([*KEY, "rank"], sort=False).agg(
        {"end_ns": "max", "bytes": "max", "wait_ns": "sum", "transfer_ns": "sum"},
    )
    begun = waits[waits["begins"]].drop_duplicates([*KEY, "rank"])
    names = [*KEY, "rank", "phase", "class", "module", "start_ns", "last_ns", "last"]
    by_rank: pd.DataFrame = begun[names].join(sums, on=[*KEY, "rank"]).reset_index(drop=True)
    return by_rank
