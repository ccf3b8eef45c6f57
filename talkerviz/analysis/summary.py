"""Latency summary: calls grouped by module, class, phase, part, layer, request or frame."""

from __future__ import annotations

import re
from typing import Literal, get_args

import numpy as np
import pandas as pd

from talkerviz.analysis.frame_latency import call_parts, frame_latencies
from talkerviz.analysis.roofline import roofline
from talkerviz.analysis.sampled_frames import estimated_totals
from talkerviz.trace.call_tree import outermost
from talkerviz.trace.labels import call_shapes, with_others
from talkerviz.trace.trace import TraceRecord

By = Literal["module", "class", "phase", "part", "layer", "request", "frame", "call"]
BY: tuple[By, ...] = get_args(By)

GARBAGE_COLLECTION = "garbage collection"
"""Name of the row of Python's garbage collections, in tables by module and by class."""
# Garbage collections below 1 % of all time, or below 1 ms, are in a note only.
_MIN_COLLECTED_SHARE, _MIN_COLLECTED_NS = 0.01, 1_000_000

_IN_RUN_ORDER = ("phase", "part", "request", "frame")  # groupings that are in the order of the run by default
_LAYER = re.compile(r"^(.*?\.\d+)(?:\.|$)")


def summarise(trace: TraceRecord, by: str = "module", sort: str | None = None) -> pd.DataFrame:
    """Summarise the calls of a trace, with a row a module, class, phase, part, layer, request, frame or call.

    Args:
        trace: a trace, or a selection of `Trace.select`.
        by: grouping of the rows. A part is the talker, its code predictor or the setup before both. A layer is a module
            path down to its first number, `talker.model.layers.3`; a module outside of layers is a row of its own.
        sort: a column, see `sort_rows`; None is `self`, or the order of the run for phases, parts, requests and frames.
            Without times, `self` and `total` sort by `calls`.

    Returns:
        Row names: `module` and `class`, or the grouping; for calls also `call`, `phase`, `frame`, `step`. Then

        - `parameters` and `parameter_bytes` of a module or layer with its children;
        - the columns of `frame_latencies` for frames, means over runs;
        - `calls`, number of calls; `total_ns`, time inside them, nested calls of one row counted once; `self_ns`,
          without child calls; `mean_ns`, `p50_ns`, `p95_ns`, `p99_ns` of a call; `share` of all self time, 0 to 1;
        - `device_ns` and `busy_ns`, device time and kernel time of the calls in `total_ns`; `flops`, and
          `uncounted`, calls of operators of unknown arithmetic that they leave out, so that they are a lower bound;
          `bytes` read and written;
        - `intensity`, `of_peak` and `bound`, see `roofline`; `memory_peak_bytes`, the maximum;
        - `shapes`, the commonest shapes and the number of others; of a single call also the number of further tensors,
          `1x20x1024 +2 → 1x20x2048`.

        If the clock stamped all calls of one frame in N alone, `attrs["device_every"]` is N and `device_ns` an
        estimate. Unmeasured values are `<NA>`, as is the frame of calls outside of frames. By module and class,
        Python's garbage collections have a row if they took at least 1 % of the time and 1 ms.

    Raises:
        ValueError: an unknown `by`, or as `sort_rows`.
    """
    if by not in BY:
        raise ValueError(f"cannot group by {by!r}: choose from {', '.join(BY)}")
    calls = trace.calls
    codes, names = pd.factorize(_keys(trace, by), use_na_sentinel=False)
    timed = bool(calls["host_ns"].notna().all()) and len(calls) > 0
    host = calls["host_ns"].to_numpy(dtype=float, na_value=np.nan)
    own = calls["host_self_ns"].to_numpy(dtype=float, na_value=np.nan)
    outer = outermost(calls, codes)
    rows = pd.DataFrame({"key": codes, "host": host, "self": own, "outer": np.where(outer, host, 0)})
    groups = rows.groupby("key", sort=True)
    whole = own.sum()

    summary = _names(calls, by, names, codes)
    if by in ("module", "layer"):
        summary["parameters"], summary["parameter_bytes"] = _parameters(trace, summary[by])
    if by == "frame":
        # Mean over runs.
        latencies = frame_latencies(trace).drop(columns="run").groupby("frame").mean()
        for name, values in latencies.reindex(summary["frame"]).items():
            summary[name] = values.round().astype("Int64").array if str(name).endswith("_ns") else values.array
    summary["calls"] = groups.size().to_numpy()
    times = {
        "total_ns": groups["outer"].sum(),
        "self_ns": groups["self"].sum(),
        "mean_ns": groups["host"].mean(),
        "p50_ns": groups["host"].quantile(0.50),
        "p95_ns": groups["host"].quantile(0.95),
        "p99_ns": groups["host"].quantile(0.99),
    }
    for name, values in times.items():
        summary[name] = pd.array(values.round() if timed else [pd.NA] * len(names), dtype="Int64")
    share = times["self_ns"] / whole if timed and whole else [pd.NA] * len(names)
    summary["share"] = pd.array(share, dtype="Float64")
    summary["device_ns"] = estimated_totals(trace, codes, outer)
    summary["busy_ns"] = _total(calls["busy_ns"], codes, outer)
    summary["flops"] = _total(calls["flops"], codes, outer)
    summary["uncounted"] = _total(calls["uncounted_operators"], codes, outer)
    summary["bytes"] = _total(calls["bytes_read"] + calls["bytes_written"], codes, outer)
    on_device = summary["device_ns"].notna().any()
    limits = roofline(
        summary["flops"],
        summary["bytes"],
        summary["device_ns" if on_device else "total_ns"],
        summary["busy_ns"],
        trace.facts.get("peaks", {}),
    )
    summary[limits.columns] = limits
    peak = pd.Series(calls["memory_peak_bytes"].array).groupby(codes).max()
    summary["memory_peak_bytes"] = pd.array(peak.to_numpy(), dtype="Int64")
    summary["shapes"] = _commonest_shapes(calls, codes, len(names), more=by == "call")
    if by in ("module", "class") and timed:
        summary = _with_collections(summary, trace, by)
    ordered = _sorted(summary, by, sort, timed)
    if sampling := trace.facts.get("device_sampling"):
        ordered.attrs["device_every"] = sampling["every"]
    return ordered


def _with_collections(summary: pd.DataFrame, trace: TraceRecord, by: str) -> pd.DataFrame:
    """Add a row for Python's garbage collections inside the calls, if they took enough time to matter."""
    took = trace.collections_inside()["host_ns"]
    whole = int(took.sum()) + int(summary["self_ns"].sum())
    if took.sum() < max(_MIN_COLLECTED_NS, _MIN_COLLECTED_SHARE * whole):
        return summary
    summary["share"] = (summary["self_ns"] / whole).astype("Float64")
    quantiles = {f"p{part}_ns": round(float(took.quantile(part / 100))) for part in (50, 95, 99)}
    row: dict[str, object] = {
        by: GARBAGE_COLLECTION,
        "calls": len(took),
        "total_ns": int(took.sum()),
        "self_ns": int(took.sum()),
        "mean_ns": round(float(took.mean())),
        **quantiles,
        "share": took.sum() / whole,
        "shapes": "",
    }
    if by == "module":
        row |= {"class": "", "parameters": 0, "parameter_bytes": 0}
    added = pd.DataFrame([{name: row.get(str(name), pd.NA) for name in summary}]).astype(summary.dtypes.to_dict())
    every: pd.DataFrame = pd.concat([summary, added], ignore_index=True)
    return every


def sort_rows(table: pd.DataFrame, sort: str) -> pd.DataFrame:
    """Sort a table by one of its columns: numbers largest first, texts alphabetically, missing values last.

    Args:
        table: the rows.
        sort: name of a column, with or without its unit: `self_ns` or `self`, `memory_peak_bytes` or `memory`.

    Raises:
        ValueError: no such column, or one that was not measured.
    """
    short = {str(name).removesuffix("_ns").removesuffix("_peak_bytes"): name for name in table.columns}
    names = {str(name): name for name in table.columns} | short
    if sort not in names:
        measured = [name for name, column in short.items() if table[column].notna().any()]
        raise ValueError(f"cannot sort by {sort!r}: choose from {', '.join(measured or short)}")
    column = table[names[sort]]
    if len(column) and column.isna().all():
        raise ValueError(f"cannot sort by {sort!r}: it was not measured in this run")
    ordered: pd.DataFrame = table.sort_values(
        names[sort], ascending=not pd.api.types.is_numeric_dtype(column), kind="stable", ignore_index=True
    )
    return ordered


def _keys(trace: TraceRecord, by: str) -> pd.Series:
    if by == "part":
        return call_parts(trace)
    if by == "layer":
        names = {path: layer_of(path) for path in trace.calls["path"].cat.categories}
        layers: pd.Series = trace.calls["path"].astype(object).map(names)
        return layers
    keys: pd.Series = trace.calls[{"module": "path"}.get(by, by)]
    # Calls without a phase or frame, such as the talker's setup, are a row as well.
    return keys.astype(object).where(keys.notna(), None) if keys.dtype == "category" else keys


def layer_of(path: str) -> str:
    """Return a module path down to its first number, `model.layers.3`; one without a number stays as it is."""
    match = _LAYER.match(path)
    return match[1] if match else path


def _parameters(trace: TraceRecord, paths: pd.Series) -> tuple[list[int], list[int]]:
    """Return the number and bytes of the parameters of each module with its children."""
    sizes = {path: module for module in trace.modules for path in (module.path, *module.aliases)}
    rows = [sizes.get(path) for path in paths]
    return [row.parameters if row else 0 for row in rows], [row.parameter_bytes if row else 0 for row in rows]


def _total(values: pd.Series, codes: np.ndarray, outer: np.ndarray) -> pd.api.extensions.ExtensionArray:
    """Sum each group's outermost calls; missing if one of them is missing."""
    whole = pd.Series(values.array)[outer]
    sums = whole.groupby(codes[outer]).sum()
    unknown = np.bincount(codes[outer][whole.isna()], minlength=len(sums)) > 0
    total: pd.api.extensions.ExtensionArray = pd.array(sums.mask(unknown), dtype="Int64")
    return total


def _names(calls: pd.DataFrame, by: str, names: pd.Index, codes: np.ndarray) -> pd.DataFrame:
    if by == "call":
        columns = ["call", "path", "class", "phase", "frame", "step"]
        rows: pd.DataFrame = calls[columns].rename(columns={"path": "module"}).reset_index(drop=True)
        return rows
    summary: pd.DataFrame = pd.DataFrame({by: names})
    if by == "module":
        first = np.unique(codes, return_index=True)[1]
        summary["class"] = calls["class"].astype(object).to_numpy()[first]
    return summary


def _commonest_shapes(calls: pd.DataFrame, codes: np.ndarray, groups: int, more: bool) -> list[str]:
    text_of, texts = pd.factorize(np.array(call_shapes(calls, more), dtype=object))
    pairs, first, count = np.unique(codes * max(len(texts), 1) + text_of, return_index=True, return_counts=True)
    group, text = np.divmod(pairs, max(len(texts), 1))
    best = np.lexsort((first, -count, group))  # in each group the commonest first, ties in order of occurrence
    best = best[np.unique(group[best], return_index=True)[1]]
    different = np.bincount(group, minlength=groups)
    return [with_others(texts[t], n - 1) for t, n in zip(text[best], different.tolist(), strict=True)]


def _sorted(summary: pd.DataFrame, by: str, sort: str | None, timed: bool) -> pd.DataFrame:
    if sort is None and by in _IN_RUN_ORDER:
        return summary
    if sort in (None, "self", "total") and not timed:
        sort = "calls"
    return sort_rows(summary, sort or "self")
