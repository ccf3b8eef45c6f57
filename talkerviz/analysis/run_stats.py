"""How times differ from run to run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from talkerviz.analysis.summary import BY, summarise
from talkerviz.trace.runs import whole_runs
from talkerviz.trace.trace import TraceRecord

BY_OVER_RUNS = tuple(by for by in BY if by != "call")


def over_runs(trace: TraceRecord, by: str = "module") -> pd.DataFrame:
    """How a row's time differs from run to run. Runs that were cut short are left out.

    Args:
        trace: the whole trace, or what `Trace.select` left of it.
        by: what a row stands for, as of `summarise`, but not `call`.

    Returns:
        The names of the row as `summarise` has them, largest mean self time first, phases, parts and frames in the
        run's order; `calls`, the mean in a run, rounded. Then of the `self`, `total` and `device` time in a run, in
        nanoseconds: `self.mean_ns`, `self.std_ns` (of a sample), `self.p50_ns`, and so on. A run in which a row had no
        calls counts as 0; what was not measured is `<NA>`. `attrs["runs"]` is how many runs there were.

    Raises:
        ValueError: an unknown `by`, or fewer than two whole runs.
    """
    if by not in BY_OVER_RUNS:
        raise ValueError(f"cannot group by {by!r} over runs: choose from {', '.join(BY_OVER_RUNS)}")
    runs = whole_runs(trace)
    if len(runs) < 2:
        raise ValueError("no two whole runs in this trace: record more with `talkerviz trace --repeat`")
    tables = [summarise(replace(trace.select(run=run), flow=None), by) for run in runs]
    names = ["module", "class"] if by == "module" else [by]
    every = pd.concat(tables, ignore_index=True)
    groups = every.groupby(names, sort=False, observed=True, dropna=False)
    found = groups.size().index.to_frame(index=False)
    found["calls"] = (groups["calls"].sum().to_numpy() / len(tables)).round().astype(np.int64)
    place = groups.ngroup().to_numpy()
    which = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    for name, column in (("self", "self_ns"), ("total", "total_ns"), ("device", "device_ns")):
        values = np.zeros((len(found), len(tables)))
        values[place, which] = every[column].to_numpy(dtype=float, na_value=np.nan)
        statistics = {"mean": values.mean(axis=1), "std": values.std(axis=1, ddof=1), "p50": np.median(values, axis=1)}
        for statistic, figures in statistics.items():
            found[f"{name}.{statistic}_ns"] = pd.array(np.round(figures), dtype="Int64")
    found.attrs["runs"] = len(tables)
    if by in ("phase", "part", "frame"):
        return found
    ordered: pd.DataFrame = found.sort_values("self.mean_ns", ascending=False, kind="stable", ignore_index=True)
    return ordered
