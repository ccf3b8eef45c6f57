"""Several ranks in one trace, as `merge` puts them together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from talkerviz.trace.flow import flow_between

if TYPE_CHECKING:
    from talkerviz.trace.trace import Trace


def ranks_of(trace: Trace) -> list[int]:
    """The ranks that a trace is of, in order; none where it is of no process among several."""
    processes = trace.facts.get("processes", [trace.facts["process"]] if "process" in trace.facts else [])
    return [int(process["rank"]) for process in processes]


def of_rank(trace: Trace, rank: int) -> Trace:
    """One rank's part of a merged trace, its times where they are; of a single rank's trace all.

    Raises:
        ValueError: it has no such rank.
    """
    ranks = ranks_of(trace)
    if rank not in ranks:
        known = f"it has {', '.join(map(str, ranks))}" if ranks else "it is of a single process"
        raise ValueError(f"no rank {rank} in this trace: {known}")
    processes = trace.facts.get("processes")
    if processes is None:
        return trace
    place = ranks.index(rank)
    common = {name: value for name, value in trace.facts.items() if name not in ("processes", "clocks")}
    own = {name: value for name, value in processes[place].items() if name not in ("modules", "differs")}
    first = sum(process["modules"] for process in processes[:place])
    calls = trace.calls[(trace.calls["rank"] == rank).to_numpy()]
    number = calls["call"].to_numpy()
    flow = trace.flow and (flow_between(trace.flow, int(number[0]) - 1, int(number[-1])) if len(number) else None)
    return replace(
        trace,
        calls=calls,
        modules=trace.modules[first : first + processes[place]["modules"]],
        facts={**common, **processes[place]["differs"], "process": own},
        flow=flow,
    )


def check_one_rank(trace: Trace) -> None:
    """Say so if a trace is of several ranks, where it cannot be.

    Raises:
        ValueError: it is.
    """
    ranks = trace.calls["rank"].unique().tolist()
    if len(ranks) > 1:
        known = ", ".join(map(str, sorted(ranks)))
        raise ValueError(f"the trace has ranks {known}, and this is of one: choose it with --rank, or take its file")
