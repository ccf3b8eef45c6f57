"""Join of several runs of the same calls: measurements of one are added to the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from talkerviz.trace.call_tree import visible_calls
from talkerviz.trace.calls_table import NULLABLE
from talkerviz.trace.flow import renumber_calls, select_flow
from talkerviz.trace.trace import RecordT, TraceRecord

_SAME_CALLS = ("path", "depth")
_SAME_TENSORS = ("inputs", "outputs")
# Of a captured call these are those of its replays.
_OF_CAPTURED = (
    *("busy_ns", "flops", "uncounted_operators", "bytes_read", "bytes_written", "memory_peak_bytes"),
    "memory_delta_bytes",
)


def join(trace: RecordT, other: TraceRecord) -> RecordT:
    """Add the measurements of another run to a trace: FLOP, bytes, kernel time, memory, flow and facts.

    If the other run adds only the flow, its tensors may have other shapes. Calls that the other run did not watch stay
    without: those of threads other than the one that began to record. Calls of a CUDA graph's replays get the
    measurements of the calls that were captured. Of several runs in the trace the first gets the flow; the other
    measurements go to each run with the same calls and tensors.

    A compiled or fused module is one call in the trace and may have child calls in the other run; the one call gets
    their measurements.

    Args:
        trace: the trace to complete.
        other: another run of the same program.

    Returns:
        The trace with more columns, flow and facts.

    Raises:
        ValueError: the other run did not make the same calls with the same tensors as the first.
    """
    # Calls of a CUDA graph's replays have no host times; the other run did not see its own replays.
    on_host = trace.calls["host_ns"].notna()
    eager = on_host if on_host.any() else ~on_host
    # Only the thread that began to record was watched; the interleaving of other threads' calls is chance.
    comparable = (eager & (trace.calls["thread"] == 0)).to_numpy()
    watched = other.calls[other.calls["thread"] == 0]
    if watched.empty and len(other.calls):
        raise ValueError("all calls were made on threads that are not watched: only the one that began to record is")
    runs = trace.calls["run"].to_numpy()
    first, *others = [trace.calls[comparable & (runs == run)] for run in np.unique(runs)] or [trace.calls]
    regions = {**other.facts.get("one_call", {}), **trace.facts.get("one_call", {})}
    visible = visible_calls(first, watched, regions)
    second = watched[visible]
    columns = [name for name in NULLABLE if trace.calls[name].isna().all() and not second[name].isna().all()]
    # A fused kernel may take its inputs in another form, such as the rotary angles of all positions.
    fused = [path for path, why in regions.items() if why == "fused"]
    tensors = _SAME_TENSORS if columns else ()
    if differs := _difference(first, second, tensors, fused):
        raise ValueError(f"{differs}: what is run must do the same each time that it is called")
    same = [calls for calls in others if columns and _difference(calls, second, tensors, fused) is None]
    rows = np.concatenate([calls.index for calls in (first, *same)])
    copies = len(same) + 1
    measured = {
        name: pd.Series(pd.concat([second[name]] * copies).array, index=rows).reindex(trace.calls.index)
        for name in columns
    }
    for name in _OF_CAPTURED:
        if name in measured:
            measured[name] = _with_replays(trace.calls, eager, measured[name].rename(name))
    flow = trace.flow
    if other.flow is not None:
        seen = select_flow(other.flow, watched, visible, None, None)
        flow = renumber_calls(seen, second["call"], first["call"])
    new = {name: fact for name, fact in other.facts.items() if name != "run_ends"}  # times of the other run
    return replace(trace, calls=trace.calls.assign(**measured), facts={**new, **trace.facts}, flow=flow)


def _with_replays(calls: pd.DataFrame, eager: pd.Series, measured: pd.Series) -> pd.Series:
    """Return a measured column in which calls of CUDA graphs' replays have the values of the captured calls.

    A graph makes the same calls in the same order each time, so of calls that are alike the first replayed one is the
    first that was captured, and so on, and around again.
    """
    alike = ["path", "inputs", "outputs"]
    captured, replayed = calls[calls["phase"] == "capture"], calls[~eager]
    if captured.empty or replayed.empty:
        return measured
    values = captured[alike].assign(number=captured.groupby(alike, observed=True).cumcount(), value=measured)
    counts = captured.groupby(alike, observed=True).size().rename("count").reset_index()
    number = replayed.groupby(alike, observed=True).cumcount()
    wanted = replayed[alike].assign(number=number, row=replayed.index).merge(counts, on=alike)
    wanted["number"] %= wanted["count"]
    found = wanted.merge(values, on=[*alike, "number"])
    complete: pd.Series = measured.copy()
    complete[found["row"]] = found["value"].array
    if measured.name == "busy_ns":
        complete[captured.index] = pd.NA  # its kernels did not run
    return complete


def _difference(
    first: pd.DataFrame, second: pd.DataFrame, tensors: Sequence[str], but_of: Collection[str]
) -> str | None:
    """Describe the first difference between two runs' calls; None if there is none.

    Tensors of calls whose path is in `but_of` are not compared.
    """
    if len(first) != len(second):
        return f"the second run made {len(second):,} calls, the first {len(first):,}"
    for name in (*_SAME_CALLS, *tensors):
        unlike = first[name].astype(object).to_numpy() != second[name].astype(object).to_numpy()
        if name in tensors:
            unlike &= ~first["path"].isin(but_of).to_numpy()
        differs = unlike.nonzero()[0]
        if len(differs):
            row = first.iloc[int(differs[0])]
            return f"the second run differs at call {row['call']:,}, {row['path']}, in its {name}"
    return None
