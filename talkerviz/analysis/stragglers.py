"""Which ranks keep the others waiting, and where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from talkerviz.analysis.collective_waits import collective_waits, waits_by_rank
from talkerviz.trace.labels import layer_pattern
from talkerviz.trace.trace import TraceRecord, ranks_of

_WORTH_A_WORD = 0.02  # of the ranks' time
_MOST_SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class Stragglers:
    """What a merged trace's collectives tell.

    Attributes:
        ranks: a row a rank: `rank`; `host`; `time_ns`, from its first call to the end of its last; `collective_ns`, how
            long collectives held it up; `wait_ns`, of that until the last rank had come; `wait_share`, that of its
            time; `last_share`, of its collectives those to which it came last; `caused_ns`, how long others waited for
            it then, together.
        collectives: a row for each kind and place, what was waited for most first: `class`; `module`, what it is called
            in, `model.layers.*` for all layers; `peers`; `calls`, of a rank; `bytes`, of one; `0.wait_ns` and so on,
            the mean of each rank, or where there are more than eight `median` and `most`; `wait_ns`, all together;
            `last`, the rank that comes last most often, and how often; `transfer_ns`, the mean after the last had come.
        straggler: the rank that is to blame; None where there is not one.
        sentence: what they say, in words.
        notes: what to know of it.
    """

    ranks: pd.DataFrame
    collectives: pd.DataFrame
    straggler: int | None
    sentence: str
    notes: tuple[str, ...]


def stragglers(trace: TraceRecord) -> Stragglers:
    """Who waits for whom in a merged trace, or in what `Trace.select` left of it.

    Raises:
        ValueError: it is of fewer than two ranks, or has no times.
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
    places = _by_place(held, ranks)
    straggler = _straggler(of_ranks)
    notes = []
    if parts.attrs["left_out"]:
        notes.append(f"{parts.attrs['left_out']:,} collectives are not in the traces of all their ranks, and left out.")
    if parts.attrs["out_of_step"]:
        notes.append(
            f"{parts.attrs['out_of_step']:,} collectives are of one kind on some ranks and of another on others, and"
            " left out: begin to record at the same place on all ranks."
        )
    return Stragglers(of_ranks, places, straggler, _sentence(of_ranks, held, straggler), tuple(notes))


def _by_rank(trace: TraceRecord, held: pd.DataFrame, ranks: list[int]) -> pd.DataFrame:
    calls = trace.calls
    start = calls["host_start_ns"].fillna(calls["device_start_ns"])
    end = start + calls["host_ns"].fillna(calls["device_ns"])
    groups = pd.DataFrame({"rank": calls["rank"], "start": start, "end": end}).groupby("rank")
    hosts = dict(zip(ranks_of(trace), (one["host"] for one in trace.facts.get("processes", ())), strict=False))
    time = (groups["end"].max() - groups["start"].min()).reindex(ranks)
    of_rank = held.groupby("rank")
    wait, transfer = (of_rank[name].sum().reindex(ranks, fill_value=0) for name in ("wait_ns", "transfer_ns"))
    caused = held[held["rank"] != held["last"]].groupby("last")["wait_ns"].sum().reindex(ranks, fill_value=0)
    last = (held["rank"] == held["last"]).groupby(held["rank"]).mean().reindex(ranks)
    found: pd.DataFrame = pd.DataFrame(
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
    return found


def _by_place(held: pd.DataFrame, ranks: list[int]) -> pd.DataFrame:
    place = held["module"].map({name: layer_pattern(name) for name in held["module"].unique()})
    groups = held.assign(place=place).groupby(["class", "place"], sort=False)
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
                **_side_by_side(by_rank, ranks),
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


def _side_by_side(by_rank: pd.Series, ranks: list[int]) -> dict[str, object]:
    if len(ranks) > _MOST_SIDE_BY_SIDE:
        return {"median.wait_ns": round(by_rank.median()), "most.wait_ns": round(by_rank.max())}
    return {f"rank {rank}.wait_ns": round(by_rank[rank]) if rank in by_rank.index else pd.NA for rank in ranks}


def _straggler(ranks: pd.DataFrame) -> int | None:
    """The rank that most waiting is for, if that is more than each of a few would have anyway."""
    caused = ranks["caused_ns"].to_numpy(float)
    if caused.sum() < _WORTH_A_WORD * ranks["time_ns"].to_numpy(float).sum():
        return None
    most = int(np.argmax(caused))
    return int(ranks["rank"][most]) if caused[most] / caused.sum() >= (1 + 1 / len(ranks)) / 2 else None


def _sentence(ranks: pd.DataFrame, held: pd.DataFrame, straggler: int | None) -> str:
    if held.empty:
        return "There are no collectives in which ranks could wait for each other."
    wait, time = float(held["wait_ns"].sum()), ranks["time_ns"].to_numpy(float)
    share = wait / time.sum()
    if straggler is None:
        if share < _WORTH_A_WORD:
            return f"No straggler: ranks wait {_percent(share, 1)} of their time for each other."
        most = ranks.iloc[int(ranks["caused_ns"].to_numpy(float).argmax())]
        return (
            f"No one straggler: ranks wait {_percent(share)} of their time for each other, and of that"
            f" {_percent(most['caused_ns'] / wait)} for rank {most['rank']}."
        )
    own = ranks[ranks["rank"] == straggler].iloc[0]
    for_it = held[(held["last"] == straggler) & (held["rank"] != straggler)]
    others = for_it["wait_ns"].sum() / time[(ranks["rank"] != straggler).to_numpy()].sum()
    places = for_it.groupby(["class", for_it["module"].map(layer_pattern)])["wait_ns"].sum()
    kind, module = places.idxmax()
    there = f" {_percent(places.max() / places.sum())} of it" if len(places) > 1 else " all of it"
    return (
        f"Rank {straggler} is the straggler: it comes last to {_percent(own['last_share'])} of its collectives, and the"
        f" others wait {_percent(others)} of their time for it,{there} in {kind} of {module}."
    )


def _percent(share: float, decimals: int = 0) -> str:
    return f"{share * 100:.{decimals}f} %"
