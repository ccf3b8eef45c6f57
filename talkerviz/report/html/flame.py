"""Flame graph: time of each stack of modules, over all calls of a phase."""

from __future__ import annotations

from typing import Any

import numpy as np

from talkerviz.trace import TraceRecord
from talkerviz.trace.call_tree import parent_rows

MAX_NODES = 6000  # bounds the size of the page


def flame_of(trace: TraceRecord) -> dict[str, list[Any]]:
    """Compute a node per stack, in run order: columns `phase`, `parent` (-1 at the top), `module`, `calls`, `total`.

    Modules and phases are category codes of the trace's columns. Beyond `MAX_NODES`, nodes of least time are left
    out.
    """
    calls = trace.calls
    count = len(calls)
    path = calls["path"].cat.codes.to_numpy().astype(np.int64)
    phase = calls["phase"].cat.codes.to_numpy().astype(np.int64)
    depth = calls["depth"].to_numpy()
    parent = parent_rows(calls)
    node = np.full(count, -1, dtype=np.int64)
    parents: list[np.ndarray] = []
    first: list[np.ndarray] = []
    made = 0
    width = int(path.max(initial=0)) + 1
    phases = int(phase.max(initial=0)) + 2
    order = np.argsort(depth, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(depth[order])) + 1) if count else []:
        above = np.where(parent[rows] >= 0, node[parent[rows]], -1)
        # A call in another phase than its caller begins a stack there.
        above = np.where((above >= 0) & (phase[rows] == phase[parent[rows]]), above, -1)
        key = ((above + 1) * width + path[rows]) * phases + phase[rows] + 1
        _, begins, codes = np.unique(key, return_index=True, return_inverse=True)
        node[rows] = made + codes
        parents.append(above[begins])
        first.append(rows[begins])
        made += len(begins)
    of_node = np.concatenate(parents) if parents else np.empty(0, dtype=np.int64)
    begin = np.concatenate(first) if first else np.empty(0, dtype=np.int64)
    time = calls["host_ns"].to_numpy(dtype=float, na_value=0)
    total = np.bincount(node, weights=time, minlength=made)
    number = np.bincount(node, minlength=made)
    kept = np.sort(np.argsort(-total, kind="stable")[:MAX_NODES])
    kept = kept[np.argsort(begin[kept], kind="stable")]
    place = np.full(made + 1, -1)
    place[kept] = np.arange(len(kept))
    return {
        "phase": phase[begin[kept]].tolist(),
        "parent": place[of_node[kept]].tolist(),
        "module": path[begin[kept]].tolist(),
        "calls": number[kept].tolist(),
        "total": np.rint(total[kept]).astype(np.int64).tolist(),
    }
