"""Which calls read what other calls made, with nothing computed between."""

from __future__ import annotations

import numpy as np
import pandas as pd

from talkerviz.trace.call_tree import callers
from talkerviz.trace.trace import TraceRecord


def handed_on(trace: TraceRecord) -> pd.DataFrame:
    """Pairs of rows, `source` and `target`: calls without calls inside, of one rank, thread, run and frame.

    What is kept and written in place, as a cache is, is left out, and so is all that a caller does between its calls.
    Empty where the flow of tensors was not recorded.
    """
    calls, flow = trace.calls, trace.flow
    if flow is None:
        nothing: pd.DataFrame = pd.DataFrame({"source": [], "target": []}, dtype="int64")
        return nothing
    edges = flow.edges[(flow.edges["source"] >= 0) & (flow.edges["target"] >= 0) & ~flow.edges["state"]]
    number = pd.Index(calls["call"])
    row = number.get_indexer(flow.ops["call"])
    pairs = pd.DataFrame({name: row[edges[name].to_numpy()] for name in ("source", "target")})
    pairs = pairs[(pairs["source"] >= 0) & (pairs["target"] >= 0) & (pairs["source"] != pairs["target"])]
    pairs = pairs.drop_duplicates(ignore_index=True)
    inner = np.ones(len(calls), dtype=bool)
    parent = callers(calls)
    inner[parent[parent >= 0]] = False
    place = calls.groupby(["rank", "thread", "run", "frame"], dropna=False).ngroup().to_numpy()
    one, two = pairs["source"].to_numpy(), pairs["target"].to_numpy()
    kept = inner[one] & inner[two] & (place[one] == place[two])
    found: pd.DataFrame = pairs[kept]
    return found
