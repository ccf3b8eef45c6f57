"""Merge of the traces of several ranks into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.trace.calls_table import calls_frame
from talkerviz.trace.clock_alignment import align
from talkerviz.trace.flow import Flow, edges_frame, ops_frame
from talkerviz.trace.trace import RecordT, TraceRecord

_FACTS_OF_ALL_RANKS = ("unfinished", "cut_short")


def merge(traces: Sequence[RecordT]) -> RecordT:
    """Merge the traces of one run's ranks, on one time line that begins with the first recording.

    Calls are concatenated rank by rank. Call numbers continue from rank to rank, with one number between left out.
    `facts` are the first rank's; the fact `processes` lists the differences of the others, the fact `clocks` holds the
    `Alignment` of their clocks. `Trace.select(rank=...)` gives back a single rank.

    Args:
        traces: a trace a rank, in any order. Ranks may be missing. Processes of a program that are no ranks, each of
            one, become ranks in the order in which their recordings began.

    Returns:
        The merged trace.

    Raises:
        ValueError: fewer than two traces, a trace without a rank, a merged trace, a duplicate rank, or ranks of
            different runs.
    """
    if len(traces) < 2:
        raise ValueError("merge: give the traces of two ranks or more")
    for trace in traces:
        if "processes" in trace.facts:
            raise ValueError("merge: one of the traces is merged already; give those of single ranks")
        if "process" not in trace.facts:
            raise ValueError("merge: one of the traces is of no rank; record several processes, as under torchrun")
    if all(trace.facts["process"]["world_size"] == 1 for trace in traces):
        traces = _numbered(traces)
    traces = sorted(traces, key=_rank)
    ranks = [_rank(trace) for trace in traces]
    if duplicates := sorted({rank for rank in ranks if ranks.count(rank) > 1}):
        raise ValueError(f"merge: rank {duplicates[0]} occurs twice; give one trace of each rank")
    if len(sizes := sorted({trace.facts["process"]["world_size"] for trace in traces})) > 1:
        raise ValueError(f"merge: ranks of different runs, one of {sizes[0]} and one of {sizes[1]} processes")
    if len({trace.facts["process"].get("run_id") or "" for trace in traces} - {""}) > 1:
        raise ValueError("merge: ranks of different runs, or from before and after a restart; give those of one run")

    alignment = align(traces)
    first_call = np.cumsum([0, *(int(trace.calls["call"].max()) + 2 if len(trace.calls) else 1 for trace in traces)])
    calls = [
        _moved(trace.calls, int(first), shift)
        for trace, first, shift in zip(traces, first_call, alignment.shift_ns, strict=False)
    ]
    columns = {
        name: pd.concat([t[name].astype(object) if t[name].dtype == "category" else t[name] for t in calls])
        for name in calls[0].columns
    }
    flows = [trace.flow for trace in traces]
    shifted = [_ends_moved(trace, shift) for trace, shift in zip(traces, alignment.shift_ns, strict=True)]
    recorded = [flow for flow in flows if flow is not None]
    return type(traces[0])(
        calls_frame(pd.DataFrame(columns).reset_index(drop=True)),
        tuple(module for trace in traces for module in trace.modules),
        _facts(shifted) | {"clocks": {name: _json(value) for name, value in asdict(alignment).items()}},
        _joined_flow(recorded, first_call.tolist()) if len(recorded) == len(flows) else None,
    )


def _numbered(traces: Sequence[RecordT]) -> list[RecordT]:
    """Return traces of a program's processes as ranks."""
    if len({trace.facts["process"].get("pid") for trace in traces}) < len(traces):
        raise ValueError("merge: one process occurs twice; give one trace of each")
    numbered = []
    for rank, trace in enumerate(sorted(traces, key=lambda trace: trace.facts["process"]["unix_ns"])):
        process = {**trace.facts["process"], "rank": rank, "world_size": len(traces)}
        calls = trace.calls.assign(rank=np.full(len(trace.calls), rank, dtype=np.int32))
        numbered.append(replace(trace, calls=calls, facts={**trace.facts, "process": process}))
    return numbered


def _rank(trace: TraceRecord) -> int:
    return int(trace.facts["process"]["rank"])


def _moved(calls: pd.DataFrame, first: int, shift: int) -> pd.DataFrame:
    moved = {name: calls[name] + shift for name in ("host_start_ns", "device_start_ns")}
    moved_calls: pd.DataFrame = calls.assign(call=calls["call"] + first, parent=calls["parent"] + first, **moved)
    return moved_calls


def _ends_moved(trace: RecordT, shift: int) -> RecordT:
    if "run_ends" not in trace.facts:
        return trace
    ends = [end and {**end, "ns": end["ns"] + shift} for end in trace.facts["run_ends"]]
    return replace(trace, facts={**trace.facts, "run_ends": ends})


def _joined_flow(flows: Sequence[Flow], first_call: Sequence[int]) -> Flow:
    ops, edges, before = [], [], 0
    for flow, first in zip(flows, first_call, strict=False):
        texts = {name: flow.ops[name].astype(object) for name in ("phase", "name", "kind")}
        call = flow.ops["call"].where(flow.ops["call"] < 0, flow.ops["call"] + first)
        # Operations before a rank's first call are after the number that was left out.
        ops.append(flow.ops.assign(**texts, call=call, after=flow.ops["after"] + first))
        ends = {name: flow.edges[name].where(flow.edges[name] < 0, flow.edges[name] + before) for name in _ENDS}
        edges.append(flow.edges.assign(**ends))
        before += len(flow.ops)
    joined = pd.concat(edges, ignore_index=True)
    columns: dict[str, object] = dict(pd.concat(ops, ignore_index=True))
    return Flow(ops_frame(columns), edges_frame(joined["source"], joined["target"], joined["state"]))


_ENDS = ("source", "target")


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _facts(traces: Sequence[TraceRecord]) -> dict[str, Any]:
    common = {name: value for name, value in traces[0].facts.items() if name != "process"}
    for name in _FACTS_OF_ALL_RANKS:
        if values := [trace.facts[name] for trace in traces if name in trace.facts]:
            common[name] = sorted({run for runs in values for run in runs}) if name == "cut_short" else True
    processes = []
    for trace in traces:
        own = {name: value for name, value in trace.facts.items() if common.get(name) != value and name != "process"}
        processes.append({**trace.facts["process"], "modules": len(trace.modules), "differs": own})
    return common | {"processes": processes}
