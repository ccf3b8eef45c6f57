"""Runs of a trace recorded with `--repeat`: completeness, ends, and their average."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from talkerviz.trace.trace import RecordT, TraceRecord, check_one_rank

_TIMES = ("host_start_ns", "host_ns", "host_self_ns", "device_start_ns", "device_ns", "device_self_ns")


def whole_runs(trace: TraceRecord) -> list[int]:
    """Return the numbers of the complete runs; all runs if none is complete."""
    runs = [int(run) for run in trace.calls["run"].unique()]
    cut = {*trace.facts.get("cut_short", ()), *(runs[-1:] if trace.facts.get("unfinished") else ())}
    return [run for run in runs if run not in cut] or runs


def end_of_run(trace: TraceRecord, run: int) -> int | None:
    """Return the end of a run on the time line of its calls, in nanoseconds.

    None if the end is unknown: `recording` alone does not know where a run ends, `Recording.run` and `record` do. None
    also for a run that was cut short, and for a selection without its last frame.
    """
    ends = trace.facts.get("run_ends", ())
    end = ends[run] if run < len(ends) else None
    last = trace.calls["frame"][trace.calls["run"] == run].max()
    return int(end["ns"]) if end and end["frame"] == (None if pd.isna(last) else int(last)) else None


def as_one_run(trace: RecordT) -> RecordT:
    """Return the first run, with the mean times over all runs that made the same calls.

    Charts are drawn of it. The fact `mean_of_runs` is the number of runs averaged.

    Raises:
        ValueError: the trace has several ranks.
    """
    check_one_rank(trace)
    calls = trace.calls
    runs = whole_runs(trace)
    if calls["run"].nunique() < 2:
        return trace
    first_run = trace.select(run=runs[0])
    same = [first_run.calls]
    for run in runs[1:]:
        other = calls[calls["run"] == run]
        if len(other) == len(first_run.calls) and all(
            (ours.to_numpy() == theirs.to_numpy()).all()
            for ours, theirs in ((_paths(first_run.calls), _paths(other)), (first_run.calls["depth"], other["depth"]))
        ):
            same.append(other)
    began = [_began(run) for run in same]
    means = {}
    for name in _TIMES:
        # Starts count from their run's: so means of nested calls are nested as well.
        shift = [time if name.endswith("start_ns") else 0.0 for time in began]
        times = [run[name].to_numpy(dtype=float, na_value=np.nan) - less for run, less in zip(same, shift, strict=True)]
        mean = np.round(np.mean(times, axis=0) + shift[0])
        means[name] = pd.Series(pd.array(mean, dtype="Float64"), index=first_run.calls.index).astype("Int64")
    facts = {**trace.facts, "mean_of_runs": len(same)}
    ends = [end_of_run(trace, int(run["run"].iloc[0])) for run in same]
    known = [end - time for end, time in zip(ends, began, strict=True) if end is not None]
    if "run_ends" in facts:
        mean_end = round(float(np.mean(known)) + began[0]) if len(known) == len(same) else None
        first = mean_end and {**facts["run_ends"][runs[0]], "ns": mean_end}
        facts["run_ends"] = [*[None] * runs[0], first]
    return replace(first_run, calls=first_run.calls.assign(**means), facts=facts)


def _paths(calls: pd.DataFrame) -> pd.Series:
    codes: pd.Series = calls["path"].cat.codes
    return codes


def _began(calls: pd.DataFrame) -> float:
    starts = calls[["host_start_ns", "device_start_ns"]].min().dropna()
    return float(starts.min()) if len(starts) else 0.0
