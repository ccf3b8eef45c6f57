"""Unfolded call graph: a node a call, in the order in which calls began, grouped by phase and frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import pandas as pd

from talkerviz.flowchart.model import phase_title
from talkerviz.trace import TraceRecord
from talkerviz.trace.labels import call_shapes
from talkerviz.trace.runs import as_one_run

HEAT_LEVELS = 5
"""Number of heat colours, as many as are told apart at a glance."""


@dataclass(frozen=True)
class Node:
    """Node of a call.

    Attributes:
        call: call number in the trace, also in a selection.
        path: path of the module.
        class_name: class of the module.
        shapes: first input and first output; empty for none.
        host_ns: time inside the call; None if not measured.
        self_ns: time without child calls; None if not measured.
        heat: 0 (cool) to 4 (hot), by self time; None if not measured.
        error: exception class of a call that raised; else None.
    """

    call: int
    path: str
    class_name: str
    shapes: str
    host_ns: int | None
    self_ns: int | None
    heat: int | None
    error: str | None


@dataclass(frozen=True)
class CallGroup:
    """Consecutive calls of one phase and frame."""

    title: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class CallGraph:
    """Unfolded call graph.

    Attributes:
        groups: groups of calls, in the order of the run.
        heat_floors: least self time of heats 1 to 4, in nanoseconds; empty if not measured.
    """

    groups: tuple[CallGroup, ...]
    heat_floors: tuple[float, ...]

    @property
    def nodes(self) -> list[Node]:
        """All nodes, in the order in which the calls began."""
        return [node for group in self.groups for node in group.nodes]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Pairs of consecutive call numbers: the order of calls, not the flow of tensors."""
        calls = [node.call for node in self.nodes]
        return list(pairwise(calls))


def call_graph(trace: TraceRecord) -> CallGraph:
    """Build the unfolded call graph of a trace or a selection."""
    calls = as_one_run(trace).calls
    floors = _heat_floors(calls["host_self_ns"].dropna().to_numpy(dtype=float))
    rows = list(zip(*(calls[name].astype(object) for name in _COLUMNS), call_shapes(calls), strict=True))
    groups = [
        CallGroup(title, tuple(_node(row, floors) for row in members))
        for title, members in groupby(rows, key=lambda row: _title(*row[:2]))
    ]
    return CallGraph(tuple(groups), floors)


_COLUMNS = ("phase", "frame", "call", "path", "class", "host_ns", "host_self_ns", "error")


def _node(row: tuple[object, ...], floors: tuple[float, ...]) -> Node:
    _, _, call, path, class_name, host_ns, self_ns, error, shapes = row
    own = _number(self_ns)
    return Node(
        call=int(call),  # type: ignore[call-overload]
        path=str(path),
        class_name=str(class_name),
        shapes=str(shapes),
        host_ns=_number(host_ns),
        self_ns=own,
        heat=None if own is None else int(np.searchsorted(floors, own, side="right")),
        error=None if pd.isna(error) else str(error),  # type: ignore[call-overload]
    )


def _title(phase: object, frame: object) -> str:
    name = phase_title(phase)
    return name if pd.isna(frame) else f"{name} · frame {frame}"  # type: ignore[call-overload]


def _number(value: object) -> int | None:
    return None if pd.isna(value) else int(value)  # type: ignore[call-overload]


def _heat_floors(own: np.ndarray) -> tuple[float, ...]:
    """Halve the 99th percentile repeatedly; the maximum is often the first call of a run, an outlier."""
    if len(own) == 0:
        return ()
    top = float(np.quantile(own, 0.99))
    return tuple(top / 2**halvings for halvings in range(HEAT_LEVELS - 1, 0, -1))
