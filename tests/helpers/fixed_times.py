"""Traces with times that are the same everywhere."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from talkerviz.api import Trace


def timed(trace: Trace, times: int) -> Trace:
    """Return the same with times that are the same everywhere: nothing is to be measured here."""
    calls = trace.calls
    own = pd.array([1_000 * times] * len(calls), dtype="Int64")
    whole = pd.array(own * (1 + 2 * (calls["depth"] == 0).to_numpy()), dtype="Int64")
    return replace(trace, calls=calls.assign(host_self_ns=own, host_ns=whole))
