"""Put together what several runs of the same calls measured."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from talkerviz.trace.flow import renumber_calls
from talkerviz.trace.frame import NULLABLE
from talkerviz.trace.trace import Trace

_SAME_CALLS = ("path", "depth")
_SAME_TENSORS = ("inputs", "outputs")


def join(trace: Trace, other: Trace) -> Trace:
    """The trace with what another run measured and this one did not: costs, busy time, memory, flow and facts.

    Where only the flow is new, the other run's tensors may have other shapes. What was not seen in it, the calls of a
    CUDA graph's replays, stays without.

    Raises:
        ValueError: the other run did not make the same calls with the same tensors.
    """
    # The calls of a CUDA graph's replays have device times alone; the other run did not see its own.
    made = (trace.calls["host_ns"].notna() | trace.calls["device_ns"].isna()).to_numpy()
    one, two = trace.calls[made], other.calls
    columns = [name for name in NULLABLE if trace.calls[name].isna().all() and not other.calls[name].isna().all()]
    if len(one) != len(two):
        raise ValueError(f"the second run made {len(two):,} calls, the first {len(one):,}")
    for name in (*_SAME_CALLS, *_SAME_TENSORS) if columns else _SAME_CALLS:
        differs = (one[name].astype(object).to_numpy() != two[name].astype(object).to_numpy()).nonzero()[0]
        if len(differs):
            row = one.iloc[int(differs[0])]
            raise ValueError(f"the second run differs at call {row['call']:,}, {row['path']}, in its {name}")
    found = {name: pd.Series(two[name].array, index=one.index).reindex(trace.calls.index) for name in columns}
    flow = trace.flow if other.flow is None else renumber_calls(other.flow, two["call"], one["call"])
    return replace(trace, calls=trace.calls.assign(**found), facts={**other.facts, **trace.facts}, flow=flow)
