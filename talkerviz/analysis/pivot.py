"""Pivot tables: modules or classes across phases, parts or ranks."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pandas as pd

from talkerviz.analysis.frame_latency import call_parts, makes_speech
from talkerviz.analysis.summary import sort_rows, summarise
from talkerviz.trace.call_tree import outermost
from talkerviz.trace.labels import layer_pattern
from talkerviz.trace.trace import TraceRecord

Across = Literal["phase", "part", "rank"]
ACROSS: tuple[Across, ...] = get_args(Across)
BY_ACROSS = ("module", "class")

_SETUP = "setup"  # runs once, with nothing to compare it with


def pivot(trace: TraceRecord, by: str = "module", across: str = "phase", sort: str | None = None) -> pd.DataFrame:
    """Summarise calls with a row a module or class, and a few columns a phase, part or rank.

    Args:
        trace: a trace, or a selection of `Trace.select`.
        by: `module` or `class`. Modules whose paths differ only in numbers are one row, `talker.model.layers.*.mlp`.
        across: `phase` compares prefill with decode, the code predictor's with the talker's. `part` compares the talker
            with the code predictor, whose modules share a row with those at the same path in the talker. `rank`
            compares the ranks of a merged trace.
        sort: `self`, `total` or `calls`, over all columns, largest first; or a single column such as `decode.share`,
            see `sort_rows`; None is `self`.

    Returns:
        The row's name; then for each phase, part or rank, such as `decode`: `decode.calls`; `decode.mean_ns`, mean time
        of a call; `decode.share`, share of the row's self time of all self time in decode, 0 to 1. Values that were not
        measured or do not occur are `<NA>`.

    Raises:
        ValueError: an unknown `by`, `across` or `sort`, or fewer than two phases, parts or ranks.
    """
    if by not in BY_ACROSS:
        raise ValueError(f"cannot group by {by!r} side by side: choose from {', '.join(BY_ACROSS)}")
    if across not in ACROSS:
        raise ValueError(f"cannot set side by side {across!r}: choose from {', '.join(ACROSS)}")
    columns = _columns(trace, across)
    kept = columns.notna().to_numpy() & (columns != _SETUP).to_numpy()
    sides = columns[kept].unique().tolist()
    if len(sides) < 2:
        raise ValueError(
            f"nothing to set side by side: the trace has no two {across}s, but {', '.join(sides) or 'none'}"
        )
    calls = trace.calls[kept]
    codes, names = pd.factorize(_names(trace, by, across)[kept])
    rows = pd.DataFrame(
        {
            "row": codes,
            "side": columns[kept].to_numpy(),
            "host": calls["host_ns"].to_numpy(float, na_value=np.nan),
            "self": calls["host_self_ns"].to_numpy(float, na_value=np.nan),
        }
    )
    table = pd.DataFrame({by: names})
    for side in sides:
        groups = rows[rows["side"] == side].groupby("row")
        own = groups["self"].sum(min_count=1).reindex(table.index)
        table[f"{side}.calls"] = pd.array(groups.size().reindex(table.index), dtype="Int64")
        table[f"{side}.mean_ns"] = pd.array(groups["host"].mean().round().reindex(table.index), dtype="Int64")
        table[f"{side}.share"] = pd.array(own / own.sum() if own.sum() else own * np.nan, dtype="Float64")
    by_row = rows.assign(total=rows["host"].where(outermost(calls, codes))).groupby("row")
    if sort not in (None, "self", "total", "calls"):
        return sort_rows(table, sort)
    order = by_row.size() if sort == "calls" else by_row[sort or "self"].sum()
    largest_first = order.sort_values(ascending=False, kind="stable").index
    ordered: pd.DataFrame = table.loc[largest_first].reset_index(drop=True)
    return ordered


def _columns(trace: TraceRecord, across: str) -> pd.Series:
    if across == "part":
        return call_parts(trace)
    if across == "rank":
        return trace.calls["rank"].map({rank: f"rank {rank}" for rank in trace.calls["rank"].unique()})
    phases = trace.calls["phase"].astype(object)
    if not makes_speech(trace):
        return phases
    unprefixed: pd.Series = phases.str.rpartition(".")[2]  # `predictor.decode` -> `decode`
    return unprefixed


def _names(trace: TraceRecord, by: str, across: str) -> pd.Series:
    if by == "class":
        return trace.calls["class"].astype(object)
    root = trace.facts["root"]
    predictor = f"{root}.code_predictor"

    def name(path: str) -> str:
        if across == "part" and (path == predictor or path.startswith(f"{predictor}.")):
            path = root + path.removeprefix(predictor)
        return layer_pattern(path)

    names: pd.Series = (
        trace.calls["path"].astype(object).map({path: name(path) for path in trace.calls["path"].cat.categories})
    )
    return names


def table(
    trace: TraceRecord, by: str = "module", sort: str | None = None, top: int | None = None, across: str | None = None
) -> pd.DataFrame:
    """Summarise calls in a table with a row a module, class, phase, part, layer, request, frame or call.

    Args:
        trace: a trace, or a selection of `Trace.select`.
        by: grouping of the rows.
        sort: any column of the table, see [`sort_rows`][talkerviz.analysis.summary.sort_rows]; None is `self`, or the
            order of the run for phases, parts, requests and frames.
        top: number of rows; None for all.
        across: columns of a pivot table of modules or classes: `phase`, `part` or `rank`; None for a plain table.

    Returns:
        The columns of [`summarise`][talkerviz.analysis.summary.summarise], or with `across` those of
        [`pivot`][talkerviz.analysis.pivot.pivot]; times in nanoseconds, unmeasured values `<NA>`.

    Raises:
        ValueError: an unknown `by`, `sort` or `across`, fewer than two columns for `across`, or `top` below 1.
    """
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    summary = pivot(trace, by, across, sort) if across else summarise(trace, by, sort)
    return summary if top is None else summary.head(top)
