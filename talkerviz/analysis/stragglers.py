"""Stragglers: ranks that other ranks wait for in collectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import pandas as pd

from talkerviz.analysis.collective_waits import collective_waits, waits_by_rank
from talkerviz.analysis.summary import layer_of
from talkerviz.trace.collectives import KEY, ranks_in
from talkerviz.trace.labels import format_count, layer_pattern
from talkerviz.trace.trace import TraceRecord, ranks_of

WaitRows = Literal["module", "layer", "frame", "call"]
"""Rows of the table of collectives: modules with `*` for the numbers of layers, layers, frames, or each collective."""
_MIN_WAIT_SHARE = 0.02  # of the ranks' time; less waiting is noise of any run
_MAX_CLOCK_ERROR_NS = 1_000_000_000  # clocks of one run's hosts do not drift apart by more
_MAX_RANK_COLUMNS = 8  # more do not fit a terminal; then the median and the maximum are shown


@dataclass(frozen=True)
class Stragglers:
    """Waiting times in the collectives of a merged trace.

    Attributes:
        ranks: a row a rank: `rank`; `host`; `time_ns`, from the start of its first call to the end of its last;
            `collective_ns`, time in collectives; `wait_ns`, the part of it before the last rank arrived; `wait_share`,
            its share of `time_ns`; `lag_ns`, the time for which it was ahead of the last rank in collectives whose
            waits cannot be seen, an upper bound of those waits, if there are any; `last_share`, share of its
            collectives to which it came last; `caused_ns`, time for which other ranks waited for it or were ahead.
        collectives: a row a kind and module, layer or frame, or a row a collective, longest total wait first: `class`;
            `module`, the calling module, `model.layers.*` for all layers, or `frame`; `collective`, its number;
            `peers`; `calls` a rank; `bytes` a call; `rank 0.wait_ns` and so on, mean wait of each rank, or
            `median.wait_ns` and `most.wait_ns` for more than eight ranks; `wait_ns`, total wait; `last`, the rank that
            comes last most often, with its share; `transfer_ns`, mean time after the last rank arrived;
            `gbytes_per_s`, bytes over that time. Waits that cannot be seen are counted as in `lag_ns`.
        straggler: the rank that causes most of the waiting; None if there is no single one.
        sentence: summary in a sentence.
        notes: caveats, a line each.
    """

    ranks: pd.DataFrame
    collectives: pd.DataFrame
    straggler: int | None
    sentence: str
    notes: tuple[str, ...]


def stragglers(trace: TraceRecord, by: WaitRows = "module") -> Stragglers:
    """Find the rank that the others wait for, in a merged trace or a selection of it.

    Args:
        trace: the trace.
        by: rows of `Stragglers.collectives`.

    Raises:
        ValueError: the trace has fewer than two ranks, or no times.
    """
    ranks = sorted(ranks_of(trace))
    if len(ranks) < 2:
        raise ValueError(
            "nothing to tell apart: this is the trace of one rank; `talkerviz merge` puts several together"
        )
    if len(trace.calls) and trace.calls["host_ns"].isna().all():
        raise ValueError("this trace has no times: record it without --clock none")
    parts = collective_waits(trace)
    held = waits_by_rank(parts)
    held["cost_ns"] = held["wait_ns"] + held["lag_ns"]
    of_ranks = _by_rank(trace, held, ranks, bool(parts.attrs["unseen"]))
    table = _by_collective(held, ranks, by)
    if contradiction := _contradiction(trace, parts.attrs["mispaired"]):
        return Stragglers(of_ranks, table, None, contradiction, _notes(trace, parts))
    straggler = _straggler(of_ranks)
    sentence = _sentence(of_ranks, held, straggler, {str(name): int(count) for name, count in parts.attrs.items()})
    return Stragglers(of_ranks, table, straggler, sentence, _notes(trace, parts))


def wait_rows(by: str) -> WaitRows:
    """Check the rows of a table of collectives.

    Raises:
        ValueError: there is no table with such rows.
    """
    for rows in get_args(WaitRows):
        if rows == by:
            return cast(WaitRows, rows)
    raise ValueError(f"by {by}: not for ranks; choose from {', '.join(get_args(WaitRows))}")


def rank_table(trace: TraceRecord, by: str = "rank") -> pd.DataFrame:
    """Return how the ranks of a merged trace wait for each other, as a table.

    Args:
        trace: the trace.
        by: `rank` for `Stragglers.ranks`; else rows of `Stragglers.collectives`.

    Returns:
        The table; `attrs` has the `sentence` and the `notes` of `Stragglers`.

    Raises:
        ValueError: as `stragglers`; unknown `by`.
    """
    waits = stragglers(trace, "module" if by == "rank" else wait_rows(by))
    table = waits.ranks if by == "rank" else waits.collectives
    table.attrs |= {"sentence": waits.sentence, "notes": waits.notes}
    return table


def _contradiction(trace: TraceRecord, mispaired: int) -> str | None:
    """Return the reason for which no rank can be named; None if waits can be told."""
    early_ns = trace.facts.get("clocks", {}).get("early_ns", 0)
    if mispaired:
        which = f"{_collectives_are(mispaired)} over on one rank before they begin on another of its host"
    elif early_ns > _MAX_CLOCK_ERROR_NS:
        which = f"by the clocks of their hosts, collectives end up to {early_ns / 1e9:.1f} s before they have begun"
    else:
        return None
    return f"Waits cannot be told: {which}, so the ranks' collectives do not belong together."


def _notes(trace: TraceRecord, parts: pd.DataFrame) -> tuple[str, ...]:
    numbers = parts.attrs
    notes = []
    if numbers["partial"]:
        notes.append(
            f"{_collectives_are(numbers['partial'])} not in the traces of all their ranks: waits among"
            " those present, a lower bound."
        )
    if numbers["left_out"]:
        notes.append(f"{_collectives_are(numbers['left_out'])} in one rank's trace alone, and left out.")
    if numbers["out_of_step"]:
        notes.append(
            f"{_collectives_are(numbers['out_of_step'])} of one kind on some ranks and of another on"
            " others, and left out."
        )
    if numbers["unseen"]:
        notes.append(
            f"Waits in {format_count(numbers['unseen'], 'collective')} cannot be seen, as torch waits for them in C++"
            " (so do DDP's) or on the device. The time until the last rank begins is counted, an upper bound."
        )
    return (*notes, *missing_ranks(trace))


def missing_ranks(trace: TraceRecord) -> tuple[str, ...]:
    """Tell which ranks never came to the collectives in which others were when their runs ended, a line a collective.

    Args:
        trace: a merged trace.
    """
    calls = trace.calls
    of_collective = calls[calls["collective"].notna().to_numpy()]
    recorded = set(ranks_of(trace))
    lines = []
    for (peers, number), failed in of_collective[of_collective["error"].notna()].groupby(
        KEY, sort=False, observed=True
    ):
        begun = of_collective[((of_collective["peers"] == peers) & (of_collective["collective"] == number)).to_numpy()]
        missing = sorted({*ranks_in(str(peers))} - {*begun["rank"]})
        if missing:
            unknown = sorted({*missing} - recorded)
            lines.append(
                f"{_names(missing)} never came to {begun['path'].iloc[0]}, collective {number:,} among {peers}, in"
                f" which {_names(sorted(set(failed['rank']))).lower()} ended with an error or was stopped"
                + (f"; of {_names(unknown).lower()} there is no trace." if unknown else ".")
            )
    return tuple(lines)


def _collectives_are(count: int) -> str:
    return f"{format_count(count, 'collective')} {'is' if count == 1 else 'are'}"


def _names(ranks: Sequence[int]) -> str:
    return f"Rank {ranks[0]}" if len(ranks) == 1 else f"Ranks {', '.join(map(str, ranks))}"


def _by_rank(trace: TraceRecord, held: pd.DataFrame, ranks: list[int], has_unseen: bool) -> pd.DataFrame:
    calls = trace.calls
    start = calls["host_start_ns"].fillna(calls["device_start_ns"])
    end = start + calls["host_ns"].fillna(calls["device_ns"])
    groups = pd.DataFrame({"rank": calls["rank"], "start": start, "end": end}).groupby("rank")
    hosts = dict(zip(ranks_of(trace), (process["host"] for process in trace.facts.get("processes", ())), strict=False))
    time = (groups["end"].max() - groups["start"].min()).reindex(ranks)
    of_rank = held.groupby("rank")
    names = ("wait_ns", "transfer_ns", "lag_ns")
    wait, transfer, lag = (of_rank[name].sum().reindex(ranks, fill_value=0) for name in names)
    caused = held[held["rank"] != held["last"]].groupby("last")["cost_ns"].sum().reindex(ranks, fill_value=0)
    last = (held["rank"] == held["last"]).groupby(held["rank"]).mean().reindex(ranks)
    table: pd.DataFrame = pd.DataFrame(
        {
            "rank": ranks,
            "host": [hosts.get(rank, "") for rank in ranks],
            "time_ns": time.array,
            "collective_ns": (wait + transfer).array,
            "wait_ns": wait.array,
            "wait_share": pd.array((wait / time).to_numpy(float), dtype="Float64"),
            "lag_ns": lag.array if has_unseen else pd.array([pd.NA] * len(ranks), dtype="Int64"),
            "last_share": pd.array(last.to_numpy(float), dtype="Float64"),
            "caused_ns": caused.array,
        }
    ).astype(dict.fromkeys(("time_ns", "collective_ns", "wait_ns", "lag_ns", "caused_ns"), "Int64"))
    return table


def _by_collective(held: pd.DataFrame, ranks: list[int], by: WaitRows) -> pd.DataFrame:
    names = {name: (layer_pattern(name) if by == "module" else layer_of(name)) for name in held["module"].unique()}
    if by in ("module", "layer"):
        held = held.assign(module=held["module"].map(names))
    held = held.assign(frame=held["frame"].fillna(-1))  # a missing key is found in no index
    keys = {"frame": ["frame", "class"], "call": ["class", "module", *KEY]}.get(by, ["class", "module"])
    groups = held.groupby(keys, sort=False, dropna=False)
    peers = groups["peers"].agg(["nunique", "first"])
    # Each collective counts once in a row, however many ranks have it.
    each = held.drop_duplicates(list(dict.fromkeys([*keys, *KEY])))
    lasts = each.groupby([*keys, "last"], sort=False, dropna=False).size().reset_index(name="times")
    usual = lasts.sort_values("times", ascending=False, kind="stable").drop_duplicates(keys).set_index(keys)
    share = usual["times"] / lasts.groupby(keys, sort=False, dropna=False)["times"].sum()
    table = pd.DataFrame(
        {
            "peers": np.where(peers["nunique"] == 1, peers["first"], peers["nunique"].astype(str) + " groups"),
            "calls": (groups.size() / groups["rank"].nunique()).round().astype("int64"),
            "bytes": groups["bytes"].mean().round(),
            **_wait_columns(held.groupby([*keys, "rank"], sort=False, dropna=False)["cost_ns"].mean(), ranks),
            "wait_ns": groups["cost_ns"].sum(),
            "last": "",
            "transfer_ns": groups["transfer_ns"].mean().round(),
        },
        index=groups.size().index,
    )
    often = zip(usual["last"].reindex(table.index), share.reindex(table.index), strict=True)
    table["last"] = [f"rank {rank}, {_percent(times)}" for rank, times in often]
    seconds = groups["transfer_ns"].mean() / 1e9
    table["gbytes_per_s"] = (groups["bytes"].mean() / 1e9 / seconds.where(seconds > 0)).astype("Float64")
    whole = {str(name): "Int64" for name in table.columns if str(name).endswith("_ns") or name == "bytes"}
    rows = table.reset_index(level=keys if by != "call" else ["class", "module", "collective"])
    if by == "frame":
        rows["frame"] = rows["frame"].astype("Int64").where(rows["frame"] >= 0)
    ordered: pd.DataFrame = (
        rows.astype(whole).sort_values("wait_ns", ascending=False, kind="stable").reset_index(drop=True)
    )
    return ordered


def _wait_columns(by_rank: pd.Series, ranks: list[int]) -> dict[str, pd.Series]:
    of_ranks = by_rank.unstack("rank")
    if len(ranks) > _MAX_RANK_COLUMNS:
        return {"median.wait_ns": of_ranks.median(axis=1).round(), "most.wait_ns": of_ranks.max(axis=1).round()}
    return {f"rank {rank}.wait_ns": of_ranks[rank].round() for rank in ranks if rank in of_ranks}


def _straggler(ranks: pd.DataFrame) -> int | None:
    """Return the rank that causes most of the waiting, if its share is well above an equal share."""
    caused = ranks["caused_ns"].to_numpy(float)
    if not caused.sum() or caused.sum() < _MIN_WAIT_SHARE * ranks["time_ns"].to_numpy(float).sum():
        return None
    most = int(np.argmax(caused))
    return int(ranks["rank"][most]) if caused[most] / caused.sum() >= (1 + 1 / len(ranks)) / 2 else None


def _sentence(ranks: pd.DataFrame, held: pd.DataFrame, straggler: int | None, numbers: Mapping[str, int]) -> str:
    if held.empty:
        if numbers["left_out"] or numbers["out_of_step"]:
            return "No collective is in the traces of two ranks, so their waits for each other are not known."
        return "There are no collectives in which ranks could wait for each other."
    wait, time = float(held["cost_ns"].sum()), ranks["time_ns"].to_numpy(float)
    share = min(wait / time.sum(), 1.0)  # an upper bound may reach beyond a rank's last call
    at_most = "at most " if numbers["unseen"] else ""
    if straggler is None:
        if share < _MIN_WAIT_SHARE:
            if numbers["unseen"]:
                return (
                    f"Ranks begin their collectives together: they wait at most {_percent(share, 1)} of their time for"
                    " each other."
                )
            if numbers["left_out"] or numbers["out_of_step"] or numbers["partial"]:
                return f"Ranks wait {_percent(share, 1)} of their time for each other where that can be seen."
            return f"No straggler: ranks wait {_percent(share, 1)} of their time for each other."
        most = ranks.iloc[int(ranks["caused_ns"].to_numpy(float).argmax())]
        return (
            f"No one straggler: ranks wait {at_most}{_percent(share)} of their time for each other, and of that"
            f" {_percent(most['caused_ns'] / wait)} for rank {most['rank']}."
        )
    own = ranks[ranks["rank"] == straggler].iloc[0]
    for_it = held[(held["last"] == straggler) & (held["rank"] != straggler)]
    others = for_it["cost_ns"].sum() / time[(ranks["rank"] != straggler).to_numpy()].sum()
    others = min(others, 1.0)  # as above
    at_most = "at most " if for_it["lag_ns"].any() else ""
    by_module = for_it.groupby(["class", for_it["module"].map(layer_pattern)])["cost_ns"].sum()
    kind, module = by_module.idxmax()
    there = f" {_percent(by_module.max() / by_module.sum())} of it" if len(by_module) > 1 else " all of it"
    return (
        f"Rank {straggler} is the straggler: it comes last to {_percent(own['last_share'])} of its collectives, and the"
        f" others wait {at_most}{_percent(others)} of their time for it,{there} in {kind} of {module}."
    )


def _percent(share: float, decimals: int = 0) -> str:
    return f"{share * 100:.{decimals}f} %"
