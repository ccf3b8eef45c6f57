"""The same modules at work in different phases, parts or ranks, side by side."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pandas as pd

from talkerviz.analysis.frame_latency import makes_speech, parts_of_calls
from talkerviz.analysis.summary import sort_rows, summarise
from talkerviz.trace.call_tree import outermost
from talkerviz.trace.names import without_numbers
from talkerviz.trace.trace import TraceRecord

Across = Literal["phase", "part", "rank"]
ACROSS: tuple[Across, ...] = get_args(Across)
BY_ACROSS = ("module", "class")

_BEFORE_ALL = "setup"  # it has no like elsewhere


def side_by_side(
    trace: TraceRecord, by: str = "module", across: str = "phase", sort: str | None = None
) -> pd.DataFrame:
    """One row for each module or class, and for each phase, part or rank a few columns.

    Args:
        trace: the whole trace, or what `Trace.select` left of it.
        by: `module` or `class`. Modules that differ by a number in their path, such as a layer's, are one row,
            `talker.model.layers.*.mlp`.
        across: `phase` sets prefill against decode, of the code predictor its own two. `part` sets the talker against
            the code predictor, the modules of which stand beside those of the same place in the talker. `rank` sets
            side by side the ranks of a merged trace.
        sort: `self`, `total` or `calls`, of all sides together, largest first; or a single column such as
            `decode.share`, see `sort_rows`; by default `self`.

    Returns:
        Columns: the row's name; then of each phase or part, `decode` say, `decode.calls`; `decode.mean_ns` of a single
        call; `decode.share`, the row's self time of all the self time in decode, 0 to 1. Of what did not run there,
        and what was not measured, they are `<NA>`.

    Raises:
        ValueError: an unknown `by`, `across` or `sort`, or there are no two phases, parts or ranks.
    """
    if by not in BY_ACROSS:
        raise ValueError(f"cannot group by {by!r} side by side: choose from {', '.join(BY_ACROSS)}")
    if across not in ACROSS:
        raise ValueError(f"cannot set side by side {across!r}: choose from {', '.join(ACROSS)}")
    beside = _columns(trace, across)
    kept = beside.notna().to_numpy() & (beside != _BEFORE_ALL).to_numpy()
    sides = beside[kept].unique().tolist()
    if len(sides) < 2:
        raise ValueError(
            f"nothing to set side by side: the trace has no two {across}s, but {', '.join(sides) or 'none'}"
        )
    calls = trace.calls[kept]
    codes, names = pd.factorize(_names(trace, by, across)[kept])
    rows = pd.DataFrame(
        {
            "row": codes,
            "side": beside[kept].to_numpy(),
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
        return parts_of_calls(trace)
    if across == "rank":
        return trace.calls["rank"].map({rank: f"rank {rank}" for rank in trace.calls["rank"].unique()})
    phases = trace.calls["phase"].astype(object)
    if not makes_speech(trace):
        return phases
    last_word: pd.Series = phases.str.rpartition(".")[2]  # `predictor.decode`
    return last_word


def _names(trace: TraceRecord, by: str, across: str) -> pd.Series:
    if by == "class":
        return trace.calls["class"].astype(object)
    root = trace.facts["root"]
    predictor = f"{root}.code_predictor"

    def name(path: str) -> str:
        if across == "part" and (path == predictor or path.startswith(f"{predictor}.")):
            path = root + path.removeprefix(predictor)
        return without_numbers(path)

    names: pd.Series = (
        trace.calls["path"].astype(object).map({path: name(path) for path in trace.calls["path"].cat.categories})
    )
    return names


def table(
    trace: TraceRecord, by: str = "module", sort: str | None = None, top: int | None = None, across: str | None = None
) -> pd.DataFrame:
    """Where the time went: a row for each module, class, phase, part, layer, request, frame or call.

    Args:
        by: what a row stands for.
        sort: any column of the table, see [`sort_rows`][talkerviz.analysis.summary.sort_rows]; by default `self`, but
            the run's order for phases, parts, requests and frames.
        top: only so many rows; None for all.
        across: set modules or classes side by side, by `phase`, `part` or `rank`.

    Returns:
        The columns of [`summarise`][talkerviz.analysis.summary.summarise], or with `across` those of
        [`side_by_side`][talkerviz.analysis.pivot.side_by_side]; times in nanoseconds. What was not measured is
        `<NA>`.

    Raises:
        ValueError: an unknown `by`, `sort` or `across`, or one that has nothing to set side by side; `top` is less
            than 1.
    """
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    summary = side_by_side(trace, by, across, sort) if across else summarise(trace, by, sort)
    return summary if top is None else summary.head(top)
