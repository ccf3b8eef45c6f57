"""Flowchart model: view options, boxes, nested groups and edges. Chart renderers read nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

Edges = Literal["flow", "calls"]
EDGES: tuple[Edges, ...] = get_args(Edges)
MAX_BOXES = 59
"""Default number of boxes of a chart: a page-wide picture with more has labels too small to read."""


@dataclass(frozen=True)
class View:
    """Options of a flowchart.

    Attributes:
        depth: deepest level of modules that is expanded; 0 shows the phases' own calls only; None expands as much as
            fits.
        open: shell-style patterns of module paths that are expanded at any depth.
        close: shell-style patterns of module paths that stay collapsed.
        max_nodes: maximum number of boxes, exceeded only for `open`; None is `MAX_BOXES`. Modules that do not fit stay
            collapsed, then modules are folded although they differ inside, then siblings become one box with their
            number.
        edges: `flow` for the flow of tensors, `calls` for the order of calls; None is flow where it was recorded.
        fold: whether repeated modules are one box.
    """

    depth: int | None = None
    open: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    max_nodes: int | None = None
    edges: Edges | None = None
    fold: bool = True

    @property
    def box_limit(self) -> int:
        """Maximum number of boxes."""
        return MAX_BOXES if self.max_nodes is None else self.max_nodes


Kind = Literal["phase", "module", "repeat", "operation", "input", "more"]
"""Kind of a box: a phase of the run; a module's calls; siblings that alternate; functional operations between modules;
an input tensor of the run; siblings that were left out."""

Change = Literal["added", "removed", "changed"]


@dataclass(frozen=True)
class Box:
    """A rectangle, or the heading of a group: calls of a module, or of several similar modules.

    Attributes:
        id: identifier in the graph, letters and digits.
        kind: kind of the box.
        name: name relative to its parent: `q_proj`; of folded siblings `layers.0-19`; of operations their names.
        path: path of the module from the root, `talker.model.layers.0-19`; empty for other kinds.
        class_name: class of the module; empty for other kinds.
        shapes: first input and first output, `1x1x1024 → 1x1x2048`; sizes that differ between calls as `21–27`.
        repeats: repetitions in one run of its parent: `20×` for layers, `7 frames` for a phase; empty for one.
        modules: number of folded modules.
        calls: number of calls; of operations, number of operations.
        total_ns: time inside the calls; None if not measured.
        self_ns: the same without child calls.
        share: `total_ns` over the time inside all calls of the graph, 0 to 1.
        details: further lines, for a tooltip.
        error: exception class of a call that raised.
        change: difference between two runs, in a diff; None for no difference and outside of diffs.
        link: name of the page that shows its inside; empty for none.
    """

    id: str
    kind: Kind
    name: str
    path: str = ""
    class_name: str = ""
    shapes: str = ""
    repeats: str = ""
    modules: int = 1
    calls: int = 1
    total_ns: int | None = None
    self_ns: int | None = None
    share: float | None = None
    details: tuple[str, ...] = ()
    error: str | None = None
    change: Change | None = None
    link: str = ""

    @property
    def mean_ns(self) -> int | None:
        """Mean time of a call."""
        return None if self.total_ns is None or not self.calls else round(self.total_ns / self.calls)


@dataclass(frozen=True)
class Group:
    """An expanded box.

    Attributes:
        box: its heading.
        members: its children, in the order of the run.
    """

    box: Box
    members: tuple[Box | Group, ...]

    @property
    def id(self) -> str:
        """Identifier of the heading."""
        return self.box.id


@dataclass(frozen=True)
class Edge:
    """An arrow between two boxes; groups have none.

    Attributes:
        source, target: ids of boxes.
        carried: `next` or `next frame` if the source is of an earlier repetition than the target, so that the arrow may
            point backwards; else empty.
        state: whether the tensor is kept and written in place, as a KV cache is.
        count: number of tensors.
        change: difference between two runs, as of a box.
    """

    source: str
    target: str
    carried: str = ""
    state: bool = False
    count: int = 1
    change: Change | None = None


@dataclass(frozen=True)
class Graph:
    """A flowchart.

    Attributes:
        title: title of the chart.
        members: boxes and groups at the top, in the order of the run.
        edges: arrows between boxes.
        flow: whether edges are the flow of tensors; else they are the order of calls.
        timed: whether boxes have times.
        notes: remarks for the reader, a line each.
    """

    title: str
    members: tuple[Box | Group, ...]
    edges: tuple[Edge, ...]
    flow: bool
    timed: bool
    notes: tuple[str, ...] = ()

    @property
    def boxes(self) -> list[Box]:
        """All boxes in the order of the run, without the headings of groups."""
        return list(boxes_in(self.members))


Member = Box | Group


def boxes_in(members: Sequence[Member]) -> Iterator[Box]:
    """Yield all boxes in the order of the run, without the headings of groups."""
    for member in members:
        if isinstance(member, Group):
            yield from boxes_in(member.members)
        else:
            yield member


def headings_in(members: Sequence[Member]) -> Iterator[Box]:
    """Yield all boxes and headings, each heading before the members of its group."""
    for member in members:
        yield heading(member)
        if isinstance(member, Group):
            yield from headings_in(member.members)


def heading(member: Member) -> Box:
    """Return the box itself, or the heading of a group."""
    return member.box if isinstance(member, Group) else member


def phase_title(phase: object) -> str:
    """Return the name of a phase, or `outside any phase` for a missing one."""
    return "outside any phase" if pd.isna(phase) else str(phase)  # type: ignore[call-overload]
