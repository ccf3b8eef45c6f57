"""Stragglers: ranks that other ranks wait for in collectives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from talkerviz.analysis.collective_waits import collective_waits, waits_by_rank
from talkerviz.trace.labels import layer_pattern
from talkerviz.trace.trace import TraceRecord, ranks_of

_MIN_WAIT_SHARE = 0.02  # of the ranks' time; less waiting is noise of any run
_MAX_RANK_COLUMNS = 8  # more do not fit a terminal; then the median and the maximum are shown


@dataclass(frozen=True)
class Stragglers:
    """Waiting times in the collectives of a merged trace.

    Attributes:
        ranks: a row a rank: `rank`; `host`; `time_ns`, from the start of its first call to the end of its last;
            `collective_ns`, time in collectives; `wait_ns`, the part of it before the last rank arrived; `wait_share`,
            its share of `time_ns`; `last_share`, share of its collectives to which it came last; `caused_ns`, time for
            which other ranks waited for it.
        collectives: a row a kind and module, longest total wait first: `class`; `module`, the calling module,
            `model.layers.*` for all layers; `peers`; `calls` a rank; `bytes` a call; `rank 0.wait_ns` and so on, mean
            wait of each rank, or `median.wait_ns` and `most.wait_ns` for more than eight ranks; `wait_ns`, total wait;
            `last`, the rank that comes last most often, with its share; `transfer_ns`, mean time after the last rank
            arrived.
        straggler: the rank that causes most of the waiting; None if there is no single one.
        sentence: summary in a sentence.
        notes: caveats, a line each.
    """

    ranks: pd.DataFrame
    collectives: pd.DataFrame
    straggler: int | None
    sentence: str
    notes: tuple[str, ...]


def stragglers(trace: TraceRecord) -> Stragglers:
    """Find the rank that the others wait for, in a merged trace or a selection of it.

    Raises:
        ValueError: the trace has fewer than two ranks, or no times.
    """
    ranks = sorted(trace.calls["rank"].unique().tolist())
    if len(ranks) < 2:
        raise ValueError(
            "nothing to tell apart: this is the trace of one rank; `talkerviz merge` puts several together"
        )
    if trace.calls["host_ns"].isna().all():
        raise ValueError("this trace has no times: record it without --clock none")
    parts = collective_waits(trace)
    held = waits_by_rank(parts)
    of_ranks = _by_rank(trace, held, ranks)
    by_module = _by_module(held, ranks)
    straggler = _straggler(of_ranks)
    notes = []
    if parts.attrs["left_out"]:
        notes.append(f"{parts.attrs['left_out']:,} collectives are not in the traces of all their ranks, and left out.")
    if parts.attrs["out_of_step"]:
        notes.append(
            f"{parts.attrs['out_of_step']:,} collectives are of one kind on some ranks and of another on others, and"
            " left out: begin to record at the same place on all ranks."
        )
    return Stragglers(of_ranks, by_module, straggler, _sentence(of_ranks, held, straggler), tuple(notes))


def _by_rank(trace: TraceRecord, held: pd.DataFrame, ranks: list[int]) -> pd.DataFrame:
    calls = trace.calls
    start = calls["host_start_ns"].fillna(calls["device_start_ns"])
    end = start + calls["host_ns"].fillna(calls["device_ns"])
    groups = pd.DataFrame({"rank": calls["rank"], "start": start, "end": end}).groupby("rank")
    hosts = dict(zip(ranks_of(trace), (process["host"] for process in trace.facts.get("processes", ())), strict=False))
    time = (groups["end"].max() - groups["start"].min()).reindex(ranks)
    of_rank = held.groupby("rank")
    wait, transfer = (of_rank[name].sum().reindex(ranks, fill_value=0) for name in ("wait_ns", "transfer_ns"))
    caused = held[held["rank"] != held["last"]].groupby("last")["wait_ns"].sum().reindex(ranks, fill_value=0)
    last = (held["rank"] == held["last"]).groupby(held["rank"]).mean().reindex(ranks)
    table: pd.DataFrame = pd.DataFrame(
        {
            "rank": ranks,
            "host": [hosts.get(rank, "") for rank in ranks],
            "time_ns": time.array,
            "collective_ns": (wait + transfer).array,
            "wait_ns": wait.array,
            "wait_share": pd.array((wait / time).to_numpy(float), dtype="Float64"),
            "last_share": pd.array(last.to_numpy(float), dtype="Float64"),
            "caused_ns": caused.array,
        }
    ).astype(dict.fromkeys(("time_ns", "collective_ns", "wait_ns", "caused_ns"), "Int64"))
    return table


def _by_module(held: pd.DataFrame, ranks: list[int]) -> pd.DataFrame:
    pattern = held["module"].map({name: layer_pattern(name) for name in held["module"].unique()})
    groups = held.assign(pattern=pattern).groupby(["class", "pattern"], sort=False)
    rows = []
    for (kind, name), rows_of in groups:
        by_rank = rows_of.groupby("rank")["wait_ns"].mean()
        peers = rows_of["peers"].unique()
        each = rows_of.drop_duplicates(["peers", "collective"])
        often = each["last"].value_counts(normalize=True, sort=False)
        usual = often.idxmax()
        rows.append(
            {
                "class": kind,
                "module": name,
                "peers": peers[0] if len(peers) == 1 else f"{len(peers)} groups",
                "calls": round(len(rows_of) / rows_of["rank"].nunique()),
                "bytes": round(rows_of["bytes"].mean()),
                **_wait_columns(by_rank, ranks),
                "wait_ns": int(rows_of["wait_ns"].sum()),
                "last": f"rank {usual}, {_percent(often[usual])}",
                "transfer_ns": round(rows_of["transfer_ns"].mean()),
            }
        )
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["class", "module", "wait_ns"])
    whole = {str(name): "Int64" for name in table.columns if str(name).endswith("_ns")}
    ordered: pd.DataFrame = table.astype(whole).sort_values(
        "wait_ns", ascending=False, kind="stable", ignore_index=True
    )
    return ordered


def _wait_columns(by_rank: pd.Series, ranks: list[int]) -> dict[str, object]:
    if len(ranks) > _MAX_RANK_COLUMNS:
        return {"median.wait_ns": round(by_rank.median()), "most.wait_ns": round(by_rank.max())}
    return {f"rank {rank}.wait_ns": round(by_rank[rank]) if rank in by_rank.index else pd.NA for rank in ranks}


def _straggler(ranks: pd.DataFrame) -> int | None:
    """Return the rank that causes most of the waiting, if its share is well above an equal share."""
    caused = ranks["caused_ns"].to_numpy(float)
    if caused.sum() < _MIN_WAIT_SHARE * ranks["time_ns"].to_numpy(float).sum():
        return None
    most = int(np.argmax(caused))
    return int(ranks["rank"][most]) if caused[most] / caused.sum() >= (1 + 1 / len(ranks)) / 2 else None


def _sentence(ranks: pd.DataFrame, held: pd.DataFrame, straggler: int | None) -> str:
    if held.empty:
        return "There are no collectives in which ranks could wait for each other."
    wait, time = float(held["wait_ns"].sum()), ranks["time_ns"].to_numpy(float)
    share = wait / time.sum()
    if straggler is None:
        if share < _MIN_WAIT_SHARE:
            return f"No straggler: ranks wait {_percent(share, 1)} of their time for each other."
        most = ranks.iloc[int(ranks["caused_ns"].to_numpy(float).argmax())]
        return (
            f"No one straggler: ranks wait {_percent(share)} of their time for each other, and of that"
            f" {_percent(most['caused_ns'] / wait)} for rank {most['rank']}."
        )
    own = ranks[ranks["rank"] == straggler].iloc[0]
    for_it = held[(held["last"] == straggler) & (held["rank"] != straggler)]
    others = for_it["wait_ns"].sum() / time[(ranks["rank"] != straggler).to_numpy()].sum()
    by_module = for_it.groupby(["class", for_it["module"].map(layer_pattern)])["wait_ns"].sum()
    kind, module = by_module.idxmax()
    there = f" {_percent(by_module.max() / by_module.sum())} of it" if len(by_module) > 1 else " all of it"
    return (
        f"Rank {straggler} is the straggler: it comes last to {_percent(own['last_share'])} of its collectives, and the"
        f" others wait {_percent(others)} of their time for it,{there} in {kind} of {module}."
    )


def _percent(share: float, decimals: int = 0) -> str:
    return f"{share * 100:.{decimals}f} %"
