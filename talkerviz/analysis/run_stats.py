"""Run-to-run statistics of times: mean, standard deviation and median."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from talkerviz.analysis.summary import BY, summarise
from talkerviz.trace.runs import whole_runs
from talkerviz.trace.trace import TraceRecord

BY_RUN_STATS = tuple(by for by in BY if by != "call")


def run_stats(trace: TraceRecord, by: str = "module") -> pd.DataFrame:
    """Compute statistics of each row's time over the runs of a trace. Runs that were cut short are left out.

    Args:
        trace: a trace, or a selection of `Trace.select`.
        by: grouping of the rows, as in `summarise`; not `call`.

    Returns:
        The row names of `summarise`, largest mean self time first; phases, parts and frames in the order of the run.
        `calls`, the rounded mean number of calls a run. For each of the `self`, `total` and `device` time of a run, in
        nanoseconds: `self.mean_ns`, `self.std_ns` (sample standard deviation), `self.p50_ns`. A run without calls of a
        row counts as 0; unmeasured times are `<NA>`. `attrs["runs"]` is the number of runs.

    Raises:
        ValueError: an unknown `by`, or fewer than two whole runs.
    """
    if by not in BY_RUN_STATS:
        raise ValueError(f"cannot group by {by!r} over runs: choose from {', '.join(BY_RUN_STATS)}")
    runs = whole_runs(trace)
    if len(runs) < 2:
        raise ValueError("no two whole runs in this trace: record more with `talkerviz trace --repeat`")
    tables = [summarise(replace(trace.select(run=run), flow=None), by) for run in runs]
    names = ["module", "class"] if by == "module" else [by]
    every = pd.concat(tables, ignore_index=True)
    groups = every.groupby(names, sort=False, observed=True, dropna=False)
    stats = groups.size().index.to_frame(index=False)
    stats["calls"] = (groups["calls"].sum().to_numpy() / len(tables)).round().astype(np.int64)
    row = groups.ngroup().to_numpy()
    run_number = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    for name, column in (("self", "self_ns"), ("total", "total_ns"), ("device", "device_ns")):
        values = np.zeros((len(stats), len(tables)))
        values[row, run_number] = every[column].to_numpy(dtype=float, na_value=np.nan)
        statistics = {"mean": values.mean(axis=1), "std": values.std(axis=1, ddof=1), "p50": np.median(values, axis=1)}
        for statistic, figures in statistics.items():
            stats[f"{name}.{statistic}_ns"] = pd.array(np.round(figures), dtype="Int64")
    stats.attrs["runs"] = len(tables)
    if by in ("phase", "part", "frame"):
        return stats
    ordered: pd.DataFrame = stats.sort_values("self.mean_ns", ascending=False, kind="stable", ignore_index=True)
    return ordered
