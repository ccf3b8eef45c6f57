"""Put together what several runs of the same calls measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from talkerviz.trace.flow import renumber_calls
from talkerviz.trace.frame import NULLABLE
from talkerviz.trace.trace import Trace

_SAME_CALLS = ("path", "depth")
_SAME_TENSORS = ("inputs", "outputs")


def join(trace: Trace, other: Trace) -> Trace:
    """The trace with what another run measured and this one did not: costs, busy time, memory, flow and facts.

    Where only the flow is new, the other run's tensors may have other shapes. What was not seen in it, the calls of a
    CUDA graph's replays, stays without. Of several runs in the trace the first has the flow; the other figures are
    those of each run that made the same calls with the same tensors.

    Raises:
        ValueError: the other run did not make the same calls with the same tensors as the first.
    """
    # The calls of a CUDA graph's replays have device times alone; the other run did not see its own.
    made = (trace.calls["host_ns"].notna() | trace.calls["device_ns"].isna()).to_numpy()
    runs = trace.calls["run"].to_numpy()
    first, *others = [trace.calls[made & (runs == run)] for run in np.unique(runs)] or [trace.calls]
    two = other.calls
    columns = [name for name in NULLABLE if trace.calls[name].isna().all() and not two[name].isna().all()]
    if differs := _difference(first, two, (*_SAME_CALLS, *_SAME_TENSORS) if columns else _SAME_CALLS):
        raise ValueError(differs)
    alike = [one for one in others if columns and _difference(one, two, (*_SAME_CALLS, *_SAME_TENSORS)) is None]
    rows = np.concatenate([one.index for one in (first, *alike)])
    again = len(alike) + 1
    found = {
        name: pd.Series(pd.concat([two[name]] * again).array, index=rows).reindex(trace.calls.index) for name in columns
    }
    flow = trace.flow if other.flow is None else renumber_calls(other.flow, two["call"], first["call"])
    new = {name: fact for name, fact in other.facts.items() if name != "run_ends"}  # which are times of the other's
    return replace(trace, calls=trace.calls.assign(**found), facts={**new, **trace.facts}, flow=flow)


def _difference(one: pd.DataFrame, two: pd.DataFrame, columns: Sequence[str]) -> str | None:
    """Where two runs' calls differ, in words; None where they do not."""
    if len(one) != len(two):
        return f"the second run made {len(two):,} calls, the first {len(one):,}"
    for name in columns:
        differs = (one[name].astype(object).to_numpy() != two[name].astype(object).to_numpy()).nonzero()[0]
        if len(differs):
            row = one.iloc[int(differs[0])]
            return f"the second run differs at call {row['call']:,}, {row['path']}, in its {name}"
    return None
