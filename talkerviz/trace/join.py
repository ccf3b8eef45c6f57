"""Put together what several runs of the same calls measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from talkerviz.trace.trace import Trace

_SAME = ("path", "depth", "inputs", "outputs")


def join(trace: Trace, other: Trace, columns: Sequence[str]) -> Trace:
    """The trace with these columns of another run's, and with that run's facts where it has none of its own.

    What was not seen in the other run, the calls of a CUDA graph's replays, stays without.

    Raises:
        ValueError: the other run did not make the same calls with the same tensors.
    """
    # The calls of a CUDA graph's replays have device times alone; the other run did not see its own.
    made = (trace.calls["host_ns"].notna() | trace.calls["device_ns"].isna()).to_numpy()
    one, two = trace.calls[made], other.calls
    if len(one) != len(two):
        raise ValueError(f"the second run made {len(two):,} calls, the first {len(one):,}")
    for name in _SAME:
        differs = (one[name].astype(object).to_numpy() != two[name].astype(object).to_numpy()).nonzero()[0]
        if len(differs):
            row = one.iloc[int(differs[0])]
            raise ValueError(f"the second run differs at call {row['call']:,}, {row['path']}, in its {name}")
    found = {name: pd.Series(two[name].array, index=one.index).reindex(trace.calls.index) for name in columns}
    return replace(trace, calls=trace.calls.assign(**found), facts={**other.facts, **trace.facts})
