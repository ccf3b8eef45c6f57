"""Waiting time in collectives and messages between ranks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from talkerviz.trace.collectives import KEY, collective_parts, parts_too_early, ranks_in
from talkerviz.trace.event_log import MESSAGES
from talkerviz.trace.trace import TraceRecord, ranks_of


def collective_waits(trace: TraceRecord) -> pd.DataFrame:
    """Return the parts of timed collectives that several traces have, with their waiting time.

    While a rank does something else between beginning a collective and waiting for it, it does not count as waiting.

    Args:
        trace: a merged trace.

    Returns:
        The columns of `collective_parts`; `last_ns`, when the last of the traces' ranks began the collective; `last`,
        that rank; `last_call`, the call with which it began; `wait_ns`, the time of this part before `last_ns`, but not
        before that rank recorded;
        `transfer_ns`, the time of this part after it; `lag_ns`, an upper bound of the wait that no part shows: the time
        from an `unseen` part's start to `last_ns`, as far as no earlier part covers it.

        `attrs` has numbers of collectives: `left_out` are in one trace alone; `partial` in those of some of their
        ranks, so that their waits are lower bounds; `out_of_step` of different kinds on different ranks, and left out;
        `mispaired` over on one rank before they began on another of its host, which cannot be, and left out with all
        others of their group; `unseen` have an unseen part.
    """
    parts = collective_parts(trace.calls)
    parts = parts[np.isfinite(parts["start_ns"].to_numpy())]
    begun = parts[parts["begins"]].drop_duplicates([*KEY, "rank"])
    groups = begun.groupby(KEY, sort=False)
    expected = begun["peers"].map({peers: len(ranks_in(peers)) for peers in begun["peers"].unique()}).to_numpy()
    present = groups["rank"].transform("size").to_numpy()
    shared = (present == expected) | (present > 1)
    differs = (groups["class"].transform("nunique").to_numpy() > 1) & ~begun["class"].isin(MESSAGES).to_numpy()
    mispaired = _mispaired(trace, parts)
    is_suspect = begun["peers"].isin(mispaired["peers"].unique()).to_numpy()
    numbers = {
        "left_out": _collectives(begun[~shared]),
        "partial": _collectives(begun[shared & (present < expected) & ~differs & ~is_suspect]),
        "out_of_step": _collectives(begun[shared & differs]),
        "mispaired": len(mispaired),
        "unseen": _collectives(parts[parts["unseen"]]),
    }
    begun = begun[shared & ~differs & ~is_suspect]

    last = begun.sort_values("start_ns", kind="stable").drop_duplicates(KEY, keep="last").set_index(KEY)
    lasts = last.reindex(pd.MultiIndex.from_frame(parts[KEY]))
    last_ns = lasts["start_ns"].to_numpy()
    start, end = parts["start_ns"].to_numpy(), parts["end_ns"].to_numpy()
    known = np.isfinite(last_ns)
    # Until the last rank recorded, it was held up by the recorder itself.
    recorded_from = lasts["rank"].map(_recorded_from(trace)).fillna(-np.inf).to_numpy(float)
    waits_from = np.maximum(start, np.minimum(recorded_from, last_ns))
    waits: pd.DataFrame = parts.assign(
        last_ns=last_ns,
        last=lasts["rank"].to_numpy(),
        last_call=lasts["call"].to_numpy(),
        wait_ns=np.where(parts["unseen"], 0, np.clip(np.minimum(end, last_ns) - waits_from, 0, None)),
        transfer_ns=np.where(parts["unseen"], 0, np.clip(end - np.maximum(start, last_ns), 0, None)),
    )[known]
    waits = waits.assign(lag_ns=_lags(waits, waits_from[known])).astype(dict.fromkeys(_WHOLE_NUMBERS, "int64"))
    waits.attrs |= numbers
    return waits


_WHOLE_NUMBERS = ("start_ns", "end_ns", "last_ns", "wait_ns", "lag_ns", "transfer_ns", "last", "last_call")


def _collectives(parts: pd.DataFrame) -> int:
    return len(parts.drop_duplicates(KEY))


def _mispaired(trace: TraceRecord, parts: pd.DataFrame) -> pd.DataFrame:
    """Return the keys of collectives that end on a rank before they begin on another one with the same clock."""
    host = dict(zip(ranks_of(trace), (process["boot"] for process in trace.facts.get("processes", ())), strict=False))
    return parts_too_early(parts.assign(host=parts["rank"].map(host)))


def _recorded_from(trace: TraceRecord) -> dict[int, float]:
    """Return the time from which each rank's calls are recorded, where it is known."""
    shifts = trace.facts.get("clocks", {}).get("shift_ns", ())
    return {
        process["rank"]: shift + process["hooked_ns"]
        for process, shift in zip(trace.facts.get("processes", ()), shifts, strict=False)
        if "hooked_ns" in process
    }


def _lags(waits: pd.DataFrame, waits_from: np.ndarray) -> np.ndarray:
    """Return for each unseen part the time until the last rank comes that no earlier part of its rank covers.

    Args:
        waits: parts, with their `last_ns` and `wait_ns`.
        waits_from: time from which each part counts as waiting.
    """
    ordered = waits.assign(waits_from=waits_from).sort_values(["rank", "start_ns"], kind="stable")
    until = ordered["last_ns"].where(ordered["unseen"], ordered["waits_from"] + ordered["wait_ns"])
    covered = until.groupby(ordered["rank"]).cummax().groupby(ordered["rank"]).shift(fill_value=-np.inf)
    lag = (until - np.maximum(ordered["waits_from"], covered)).clip(lower=0).where(ordered["unseen"], 0)
    in_order: np.ndarray = lag.reindex(waits.index).to_numpy()
    return in_order


def waits_by_rank(waits: pd.DataFrame) -> pd.DataFrame:
    """Sum `collective_waits` over the parts of each rank in each collective.

    Args:
        waits: the table that `collective_waits` returns.

    Returns:
        A row a rank and collective: `peers`, `collective`, `rank`, `phase`, `frame`, `class`, `module`, `last_ns`,
        `last`;
        `start_ns`, when the rank began it; `end_ns`, when the rank went on; `bytes`; `wait_ns`, `lag_ns` and
        `transfer_ns`, sums over its parts.
    """
    sums = waits.groupby([*KEY, "rank"], sort=False).agg(
        {"end_ns": "max", "bytes": "max", "wait_ns": "sum", "lag_ns": "sum", "transfer_ns": "sum"},
    )
    begun = waits[waits["begins"]].drop_duplicates([*KEY, "rank"])
    names = [*KEY, "rank", "phase", "frame", "class", "module", "start_ns", "last_ns", "last"]
    by_rank: pd.DataFrame = begun[names].join(sums, on=[*KEY, "rank"]).reset_index(drop=True)
    return by_rank
