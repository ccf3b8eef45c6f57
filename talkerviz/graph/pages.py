"""A picture and, on pages of their own, the insides of all that is closed in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from glob import escape

import numpy as np

from talkerviz.graph.build import Prepared, draw, draw_prepared, prepare
from talkerviz.graph.graph import Box, Graph, Group
from talkerviz.graph.view import View
from talkerviz.trace import Trace
from talkerviz.trace.runs import as_one_run

FIRST = "index"
"""The name of the page that all others are reached from."""

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_MOST_CHARACTERS = 100


@dataclass(frozen=True)
class Page:
    """One picture.

    Attributes:
        name: a file's name without its ending.
        graph: the picture; the links of its boxes are files' names.
        calls: by the id of each box and group, the numbers of the calls that it stands for.
    """

    name: str
    graph: Graph
    calls: Mapping[str, np.ndarray]


def pages_of(trace: Trace, view: View, suffix: str) -> Iterator[Page]:
    """The view of a trace, then a page for each closed box in it, and so on until all has been shown.

    Args:
        trace: the whole trace, or what `Trace.select` left of it.
        view: how the first page is drawn; the others are opened as much as its `max_nodes` allows.
        suffix: the ending of the pages' files, `.svg`.
    """
    return pages_of_views(trace, {FIRST: view}, suffix)


def pages_of_views(trace: Trace, views: Mapping[str, View], suffix: str) -> Iterator[Page]:
    """The same of several views, by their pages' names: these first, then what can be opened in any of them."""
    one_run = as_one_run(trace)
    prepared: dict[str | None, Prepared] = {}  # by what edges are
    names: dict[bytes, str] = {}
    waiting = [(name, one_run, view) for name, view in views.items()]
    while waiting:
        name, shown, how = waiting.pop(0)
        if name not in views:
            drawing = draw(shown, how)
        else:
            if how.edges not in prepared:
                prepared[how.edges] = prepare(one_run, how.edges)
            drawing = draw_prepared(prepared[how.edges], how)
        links = {}
        for box in drawing.graph.boxes:
            if box.id not in drawing.closed:
                continue
            rows = drawing.calls[box.id]
            calls = shown.calls["call"].to_numpy()[rows]
            key = calls.tobytes()
            if key not in names:
                phase = shown.calls["phase"].iloc[rows[0]]
                names[key] = _file_name(f"{phase}.{box.path}", {*views, *names.values()})
                # The page is about these modules, so they are open however much is in them.
                paths = shown.calls["path"].iloc[rows].unique()
                opened = View(open=tuple(map(escape, paths)), max_nodes=how.max_nodes, edges=how.edges, fold=how.fold)
                waiting.append((names[key], shown.inside(calls), opened))
            links[box.id] = names[key] + suffix
        title = drawing.graph.title if name in views else f"{drawing.graph.title}: {name}"
        graph = replace(drawing.graph, title=title, members=_linked(drawing.graph.members, links))
        numbers = shown.calls["call"].to_numpy()
        yield Page(name, graph, {id: numbers[rows] for id, rows in drawing.calls.items()})


def _linked(members: tuple[Box | Group, ...], links: dict[str, str]) -> tuple[Box | Group, ...]:
    return tuple(
        replace(member, members=_linked(member.members, links))
        if isinstance(member, Group)
        else replace(member, link=links.get(member.id, ""))
        for member in members
    )


def _file_name(text: str, taken: set[str]) -> str:
    name = _UNFIT.sub("_", text)[:_MOST_CHARACTERS].strip("._") or "page"
    same = sum(known == name or re.fullmatch(rf"{re.escape(name)}-\d+", known) is not None for known in taken)
    return f"{name}-{same + 1}" if same else name
