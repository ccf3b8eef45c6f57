"""Collectives and messages between ranks: who came when, and how long each waited for whom."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from talkerviz.trace.event_log import MESSAGES
from talkerviz.trace.schema import TensorInfo, Tensors
from talkerviz.trace.trace import TraceRecord

_ONE = ["peers", "collective"]
_DIGITS = re.compile(r"\d+")


def ranks_among(peers: str) -> int:
    """How many ranks a text of peers names: 4 in `0-3`, 2 in `0>1`; 0 where it does not say."""
    if "*" in peers:
        return 0
    if ">" in peers:
        return 2
    ends = [part.split("-") for part in peers.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def parts_of_collectives(calls: pd.DataFrame) -> pd.DataFrame:
    """A row for each call that is a part of a collective: what begins it, or waits for it.

    Returns:
        The index of `calls`, and of its columns `peers`, `collective`, `rank`, `phase`; `call`; `class`, of what begins
        it; `module`, the path of what it is in; `begins`, whether it does, and does not wait for it; `start_ns` and
        `end_ns`, on the device where that was measured; `bytes`, of all tensors that go in or come out, whichever are
        more; `done`, whether its results were there by its end.
    """
    found = calls[calls["collective"].notna().to_numpy()]
    start = found["device_start_ns"].fillna(found["host_start_ns"]).to_numpy(float, na_value=np.nan)
    took = found["device_ns"].fillna(found["host_ns"]).to_numpy(float, na_value=np.nan)
    names = found["class"].astype(object).to_numpy()
    measured = found["device_ns"].notna().to_numpy()
    on_host = ~(_elsewhere(found["inputs"]) | _elsewhere(found["outputs"]))
    results = _sizes(found["outputs"])
    parts = pd.DataFrame(
        {
            "call": found["call"],
            "peers": found["peers"].astype(object),
            "collective": found["collective"].astype("int64"),
            "rank": found["rank"],
            "phase": found["phase"].astype(object),
            "class": names,
            "module": found["path"].astype(object).map(lambda path: path.rpartition(".")[0]),
            "begins": names != "wait",
            "start_ns": start,
            "end_ns": start + took,
            "bytes": np.maximum(_sizes(found["inputs"]), results),
            "done": (measured | on_host) & ((results > 0) | (names == "barrier")) & found["error"].isna().to_numpy(),
        },
        index=found.index,
    )
    first = parts[parts["begins"]].drop_duplicates([*_ONE, "rank"]).set_index([*_ONE, "rank"])
    of = pd.MultiIndex.from_frame(parts[[*_ONE, "rank"]])
    begun = first["class"].reindex(of).to_numpy()
    parts["class"] = np.where(parts["begins"], parts["class"], begun)
    known: pd.DataFrame = parts[parts["begins"] | pd.notna(begun)]
    return known


def held_up(trace: TraceRecord) -> pd.DataFrame:
    """`parts_of_collectives` of those that are in the traces of all of their ranks, and were timed.

    Returns:
        Also `last_ns`, when the last rank came; `last`, which that was; `last_call`, what it began with; `wait_ns`, how
        long this part held its rank up until then; `transfer_ns`, and after that. While a rank does something else,
        having begun a collective that it waits for later, it is not held up. `attrs["left_out"]` is how many
        collectives are not in all traces, and `attrs["out_of_step"]` how many are of other kinds in some.
    """
    parts = parts_of_collectives(trace.calls)
    parts = parts[np.isfinite(parts["start_ns"].to_numpy())]
    begun = parts[parts["begins"]].drop_duplicates([*_ONE, "rank"])
    groups = begun.groupby(_ONE, sort=False)
    expected = begun["peers"].map({peers: ranks_among(peers) for peers in begun["peers"].unique()}).to_numpy()
    whole = groups["rank"].transform("size").to_numpy() == expected
    differs = (groups["class"].transform("nunique").to_numpy() > 1) & ~begun["class"].isin(MESSAGES).to_numpy()
    left_out, out_of_step = (len(begun[rows].drop_duplicates(_ONE)) for rows in (~whole, whole & differs))
    begun = begun[whole & ~differs]

    last = begun.sort_values("start_ns", kind="stable").drop_duplicates(_ONE, keep="last").set_index(_ONE)
    lasts = last.reindex(pd.MultiIndex.from_frame(parts[_ONE]))
    last_ns = lasts["start_ns"].to_numpy()
    start, end = parts["start_ns"].to_numpy(), parts["end_ns"].to_numpy()
    known = np.isfinite(last_ns)
    found: pd.DataFrame = parts.assign(
        last_ns=last_ns,
        last=lasts["rank"].to_numpy(),
        last_call=lasts["call"].to_numpy(),
        wait_ns=np.clip(np.minimum(end, last_ns) - start, 0, None),
        transfer_ns=np.clip(end - np.maximum(start, last_ns), 0, None),
    )[known].astype(dict.fromkeys(("start_ns", "end_ns", "last_ns", "wait_ns", "transfer_ns", *_LAST), "int64"))
    found.attrs |= {"left_out": left_out, "out_of_step": out_of_step}
    return found


_LAST = ("last", "last_call")


def waits(held: pd.DataFrame) -> pd.DataFrame:
    """Of what `held_up` finds a row for each rank in each collective.

    Returns:
        `peers`, `collective`, `rank`, `phase`, `class`, `module`, `last_ns`, `last`; `start_ns`, when the rank came,
        and `end_ns`, when it went on; `bytes`, `wait_ns` and `transfer_ns` of its parts together.
    """
    of_rank = held.groupby([*_ONE, "rank"], sort=False)
    sums = of_rank.agg(
        {"end_ns": "max", "bytes": "max", "wait_ns": "sum", "transfer_ns": "sum"},
    )
    begun = held[held["begins"]].drop_duplicates([*_ONE, "rank"])
    names = [*_ONE, "rank", "phase", "class", "module", "start_ns", "last_ns", "last"]
    found: pd.DataFrame = begun[names].join(sums, on=[*_ONE, "rank"]).reset_index(drop=True)
    return found


def ends_after_all_began(kind: str) -> bool:
    """Whether a collective of this kind is over on no rank before it has begun on all."""
    return kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier")


def _sizes(column: pd.Series) -> np.ndarray:
    return _of_lists(column, lambda tensors: sum(map(_bytes, tensors)))


def _bytes(tensor: TensorInfo) -> int:
    digits = _DIGITS.search(tensor.dtype)
    # The first number of a dtype's name is its bits; `bool` has none, and is a byte.
    bits = int(digits[0]) if digits else 8
    return math.prod(max(size, 0) for size in tensor.shape) * max(bits, 8) // 8


def _elsewhere(column: pd.Series) -> np.ndarray:
    """Whether there are tensors on a device, which may not be done when the host is."""
    return _of_lists(column, lambda tensors: any(tensor.device != "cpu" for tensor in tensors)) > 0


def _of_lists(column: pd.Series, what: Callable[[Tensors], int]) -> np.ndarray:
    known: dict[int, int] = {}  # by identity: a trace shares the few lists it has
    for tensors in column:
        if id(tensors) not in known:
            known[id(tensors)] = what(tensors)
    return np.fromiter((known[id(tensors)] for tensors in column), dtype=np.int64, count=len(column))
