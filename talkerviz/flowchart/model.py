"""What a picture of a trace is made of: boxes, nested groups, edges. The only thing that chart renderers know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

Kind = Literal["phase", "module", "repeat", "operation", "input", "more"]
"""A phase of the run; a module's calls; siblings that take turns over and over; functional operations between modules;
a tensor that comes from outside; what is left out."""

Change = Literal["added", "removed", "changed"]


@dataclass(frozen=True)
class Box:
    """A rectangle, or the heading of a group: calls of one module, or of several that are alike.

    Attributes:
        id: its name in the graph, letters and digits.
        kind: what it stands for.
        name: what it is called where it stands: `q_proj`, of folded siblings `layers.0-19`; of operations their names.
        path: the module's path from the root, `talker.model.layers.0-19`; empty where it has none.
        class_name: the module's class; empty where it has none.
        shapes: first tensor in and first out, `1x1x1024 → 1x1x2048`; sizes that differ between calls as `21–27`.
        repeats: how often it runs each time that what it stands in runs: `20×` for layers, `7 frames` for a phase;
            empty for once.
        modules: how many modules were folded into it.
        calls: how many calls it stands for; of operations, how many operations.
        total_ns: time inside those calls; None where it was not measured.
        self_ns: the same without the calls they made.
        share: `total_ns` as a part, 0 to 1, of the time inside all calls of the graph.
        details: more that is known, in lines for a tooltip.
        error: the class name of an exception that one of the calls raised.
        change: how it differs between two runs, in a drawing of both; None where it does not or there is one run.
        link: the name of the page that shows its inside; empty where there is none.
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
        """Time inside one call."""
        return None if self.total_ns is None or not self.calls else round(self.total_ns / self.calls)


@dataclass(frozen=True)
class Group:
    """What is drawn with its inside: a heading and what stands in it, in the order of the run."""

    box: Box
    members: tuple[Box | Group, ...]

    @property
    def id(self) -> str:
        """The heading's."""
        return self.box.id


@dataclass(frozen=True)
class Edge:
    """An arrow between two boxes, never a group.

    Attributes:
        source, target: ids of boxes.
        carried: what lies between the two, `next frame` or `next`, where the source is of an earlier repeat than the
            target and the arrow so may point backwards; else empty.
        state: whether the tensor is kept and written in place, as a cache is.
        count: how many times a tensor went this way.
        change: as a box's.
    """

    source: str
    target: str
    carried: str = ""
    state: bool = False
    count: int = 1
    change: Change | None = None


@dataclass(frozen=True)
class Graph:
    """A picture.

    Attributes:
        title: what it is of.
        members: what is drawn, nested, in the order of the run.
        edges: between the boxes in it.
        flow: whether edges are the flow of tensors; else they are the order of calls.
        timed: whether boxes have times.
        notes: what a reader must know, a line each.
    """

    title: str
    members: tuple[Box | Group, ...]
    edges: tuple[Edge, ...]
    flow: bool
    timed: bool
    notes: tuple[str, ...] = ()

    @property
    def boxes(self) -> list[Box]:
        """All rectangles, in the order of the run, without the headings of groups."""
        return list(boxes_in(self.members))


Member = Box | Group


def boxes_in(members: Sequence[Member]) -> Iterator[Box]:
    """All rectangles, in the order of the run, without the headings of groups."""
    for member in members:
        if isinstance(member, Group):
            yield from boxes_in(member.members)
        else:
            yield member


def headings_in(members: Sequence[Member]) -> Iterator[Box]:
    """The same with the headings, each before what is in its group."""
    for member in members:
        yield heading(member)
        if isinstance(member, Group):
            yield from headings_in(member.members)


def heading(member: Member) -> Box:
    """What a member says of itself: a box, or the heading of a group."""
    return member.box if isinstance(member, Group) else member


def phase_title(phase: object) -> str:
    """The phase's own name, or a name for calls that have none."""
    return "outside any phase" if pd.isna(phase) else str(phase)  # type: ignore[call-overload]
