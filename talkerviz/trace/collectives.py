"""Collectives and messages of a trace: their group of ranks, size and times."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from talkerviz.trace.schema import TensorInfo, Tensors

KEY = ["peers", "collective"]
"""Columns that identify a collective on all of its ranks."""
_CLOCK_READING_NS = 1_000  # two readings of a host's clock by different processes are in order to within this
_DTYPE_BITS = re.compile(r"\d+")


def ranks_in(peers: str) -> list[int]:
    """Return the ranks that a `peers` text names: 0 to 3 for `0-3`, 0 and 1 for `0>1`; empty for a wildcard `*>1`."""
    ranks = peers.split(" ", 1)[0]  # before the group's name or the message's tag
    if "*" in ranks:
        return []
    if ">" in ranks:
        return [int(rank) for rank in ranks.split(">")]
    ends = [part.split("-") for part in ranks.split(",")]
    return [rank for end in ends for rank in range(int(end[0]), int(end[-1]) + 1)]


def collective_parts(calls: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each call that begins a collective or waits for one.

    Args:
        calls: a calls table.

    Returns:
        The index of `calls`, and of its columns `peers`, `collective`, `rank`, `phase`, `frame`, `call`; `class`, the
        kind of the collective; `module`, the path of the module around the call; `begins`, false for a wait;
        `start_ns` and `end_ns`, device times where measured, else host times; `bytes`, the larger of all inputs and all
        outputs; `done`, true if the results were available at `end_ns`; `unseen`, true if ranks wait for each other in
        the collective and none of this rank's parts shows it, as torch waits in C++ or on the device.
    """
    rows = calls[calls["collective"].notna().to_numpy()]
    start = rows["device_start_ns"].fillna(rows["host_start_ns"]).to_numpy(float, na_value=np.nan)
    duration = rows["device_ns"].fillna(rows["host_ns"]).to_numpy(float, na_value=np.nan)
    names = rows["class"].astype(object).to_numpy()
    measured = rows["device_ns"].notna().to_numpy()
    on_host = ~(_on_device(rows["inputs"]) | _on_device(rows["outputs"]))
    results = _sizes(rows["outputs"])
    parts = pd.DataFrame(
        {
            "call": rows["call"],
            "peers": rows["peers"].astype(object),
            "collective": rows["collective"].astype("int64"),
            "rank": rows["rank"],
            "phase": rows["phase"].astype(object),
            "frame": rows["frame"],
            "class": names,
            "module": rows["path"].astype(object).map(lambda path: path.rpartition(".")[0]),
            "begins": names != "wait",
            "start_ns": start,
            "end_ns": start + duration,
            "bytes": np.maximum(_sizes(rows["inputs"]), results),
            "done": (measured | on_host) & ((results > 0) | (names == "barrier")) & rows["error"].isna().to_numpy(),
        },
        index=rows.index,
    )
    first = parts[parts["begins"]].drop_duplicates([*KEY, "rank"]).set_index([*KEY, "rank"])
    kinds = first["class"].reindex(pd.MultiIndex.from_frame(parts[[*KEY, "rank"]])).to_numpy()
    parts["class"] = np.where(parts["begins"], parts["class"], kinds)
    known: pd.DataFrame = parts[parts["begins"] | pd.notna(kinds)]
    by_rank = known.groupby([*KEY, "rank"], sort=False)
    # A barrier has no results that tell whether it was begun alone; if it was, a wait follows.
    begun_alone = known["begins"] & (known["class"] == "barrier") & (by_rank["begins"].transform("size") > 1)
    known = known.assign(done=known["done"] & ~begun_alone)
    is_done = known.groupby([*KEY, "rank"], sort=False)["done"].transform("any")
    failed = rows["error"].notna().loc[known.index]
    waits_for_all = known["class"].map(is_barrier_like).astype(bool)
    with_unseen: pd.DataFrame = known.assign(unseen=known["begins"] & ~is_done & ~failed & waits_for_all)
    return with_unseen


def parts_too_early(parts: pd.DataFrame) -> pd.DataFrame:
    """Return the collectives that are over on one rank before they have begun on another with the same clock.

    Such parts are not of one collective: their ranks have counted differently, or are of different runs.

    Args:
        parts: parts as of `collective_parts`, of several ranks on one time line, with a column `host` that is equal for
            ranks with the same clock.

    Returns:
        A row a collective: `peers`, `collective`.
    """
    is_message = parts["class"].isin(("send", "recv"))
    bounds = parts[parts["class"].map(is_barrier_like).astype(bool) | is_message]
    start = bounds["start_ns"].where(bounds["begins"] & (bounds["class"] != "recv"))
    end = bounds["end_ns"].where(bounds["done"] & (bounds["class"] != "send"))
    keys = [bounds[name] for name in (*KEY, "host")]
    latest, earliest = (
        start.groupby(keys).max(),
        end.groupby([*keys, bounds["rank"]]).max().groupby(level=[0, 1, 2]).min(),
    )
    wrong = latest > earliest + _CLOCK_READING_NS
    found: pd.DataFrame = wrong[wrong].index.to_frame(index=False)[KEY].drop_duplicates(ignore_index=True)
    return found


def is_barrier_like(kind: str) -> bool:
    """Return whether a collective of this kind ends on no rank before it has begun on all."""
    return kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier")


def _sizes(column: pd.Series) -> np.ndarray:
    return _map_lists(column, lambda tensors: sum(map(_bytes, tensors)))


def _bytes(tensor: TensorInfo) -> int:
    digits = _DTYPE_BITS.search(tensor.dtype)
    # The first number in a dtype's name is its bits; `bool` has none, and is a byte.
    bits = int(digits[0]) if digits else 8
    return math.prod(max(size, 0) for size in tensor.shape) * max(bits, 8) // 8


def _on_device(column: pd.Series) -> np.ndarray:
    """Mark the rows with tensors on a device, which may be done later than the host call."""
    return _map_lists(column, lambda tensors: any(tensor.device != "cpu" for tensor in tensors)) > 0


def _map_lists(column: pd.Series, measure: Callable[[Tensors], int]) -> np.ndarray:
    known: dict[int, int] = {}  # by identity: a trace shares its lists between calls
    for tensors in column:
        if id(tensors) not in known:
            known[id(tensors)] = measure(tensors)
    return np.fromiter((known[id(tensors)] for tensors in column), dtype=np.int64, count=len(column))
