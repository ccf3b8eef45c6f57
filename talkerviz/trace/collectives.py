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
_DTYPE_BITS = re.compile(r"\d+")


def ranks_among(peers: str) -> int:
    """Return the number of ranks that a `peers` text names: 4 in `0-3`, 2 in `0>1`; 0 for a wildcard `*>1`."""
    if "*" in peers:
        return 0
    if ">" in peers:
        return 2
    ends = [part.split("-") for part in peers.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def collective_parts(calls: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each call that begins a collective or waits for one.

    Args:
        calls: a calls table.

    Returns:
        The index of `calls`, and of its columns `peers`, `collective`, `rank`, `phase`, `call`; `class`, the kind of
        the collective; `module`, the path of the module around the call; `begins`, false for a wait; `start_ns` and
        `end_ns`, device times where measured, else host times; `bytes`, the larger of all inputs and all outputs;
        `done`, true if the results were available at `end_ns`.
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
    return known


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
