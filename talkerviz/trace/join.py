"""Put together what several runs of the same calls measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from talkerviz.trace.calls_table import NULLABLE
from talkerviz.trace.flow import renumber_calls, select_flow
from talkerviz.trace.opaque_calls import calls_in_both
from talkerviz.trace.trace import RecordT, TraceRecord

_SAME_CALLS = ("path", "depth")
_SAME_TENSORS = ("inputs", "outputs")


def join(trace: RecordT, other: TraceRecord) -> RecordT:
    """The trace with what another run measured and this one did not: costs, busy time, memory, flow and facts.

    Where only the flow is new, the other run's tensors may have other shapes. What was not seen in it, the calls of a
    CUDA graph's replays and those of other threads than the one that began to record, stays without. Of several runs in
    the trace the first has the flow; the other figures are those of each run that made the same calls with the same
    tensors.

    What is one call in this trace, compiled or fused, may have called modules in the other run. The call has what those
    did there.

    Raises:
        ValueError: the other run did not make the same calls with the same tensors as the first.
    """
    # The calls of a CUDA graph's replays have device times alone; the other run did not see its own.
    alive = trace.calls["host_ns"].notna() | trace.calls["device_ns"].isna()
    # Only the thread that began to record was watched; how calls of others came between its own is chance.
    made = (alive & (trace.calls["thread"] == 0)).to_numpy()
    watched = other.calls[other.calls["thread"] == 0]
    if watched.empty and len(other.calls):
        raise ValueError("all calls were made on threads that are not watched: only the one that began to record is")
    runs = trace.calls["run"].to_numpy()
    first, *others = [trace.calls[made & (runs == run)] for run in np.unique(runs)] or [trace.calls]
    regions = {**other.facts.get("one_call", {}), **trace.facts.get("one_call", {})}
    both = calls_in_both(first, watched, regions)
    two = watched[both]
    columns = [name for name in NULLABLE if trace.calls[name].isna().all() and not two[name].isna().all()]
    # Kernels may read what the modules around them hand on in another form, as all positions' angles.
    fused = [path for path, why in regions.items() if why == "fused"]
    tensors = _SAME_TENSORS if columns else ()
    if differs := _difference(first, two, tensors, fused):
        raise ValueError(f"{differs}: what is run must do the same each time that it is called")
    alike = [one for one in others if columns and _difference(one, two, tensors, fused) is None]
    rows = np.concatenate([one.index for one in (first, *alike)])
    again = len(alike) + 1
    found = {
        name: pd.Series(pd.concat([two[name]] * again).array, index=rows).reindex(trace.calls.index) for name in columns
    }
    flow = trace.flow
    if other.flow is not None:
        flow = renumber_calls(select_flow(other.flow, watched, both, None, None), two["call"], first["call"])
    new = {name: fact for name, fact in other.facts.items() if name != "run_ends"}  # which are times of the other's
    return replace(trace, calls=trace.calls.assign(**found), facts={**new, **trace.facts}, flow=flow)


def _difference(one: pd.DataFrame, two: pd.DataFrame, tensors: Sequence[str], but_of: Collection[str]) -> str | None:
    """Where two runs' calls differ, in words; None where they do not. Tensors of some paths are not looked at."""
    if len(one) != len(two):
        return f"the second run made {len(two):,} calls, the first {len(one):,}"
    for name in (*_SAME_CALLS, *tensors):
        unlike = one[name].astype(object).to_numpy() != two[name].astype(object).to_numpy()
        if name in tensors:
            unlike &= ~one["path"].isin(but_of).to_numpy()
        differs = unlike.nonzero()[0]
        if len(differs):
            row = one.iloc[int(differs[0])]
            return f"the second run differs at call {row['call']:,}, {row['path']}, in its {name}"
    return None
