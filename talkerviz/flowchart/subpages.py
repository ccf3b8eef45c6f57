"""A picture and, on pages of their own, the insides of all that is closed in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from glob import escape

import numpy as np

from talkerviz.flowchart.builder import Prepared, draw, draw_prepared, prepare
from talkerviz.flowchart.model import Box, Graph, Group, View
from talkerviz.trace import TraceRecord
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


def subpages(trace: TraceRecord, view: View, suffix: str) -> Iterator[Page]:
    """The view of a trace, then a page for each closed box in it, and so on until all has been shown.

    Args:
        trace: the whole trace, or what `Trace.select` left of it.
        view: how the first page is drawn; the others are opened as much as its `max_nodes` allows.
        suffix: the ending of the pages' files, `.svg`.
    """
    pages, drawn = Subpages(trace, {FIRST: view}, suffix), 0
    while drawn < len(pages.names):
        yield pages.draw(pages.names[drawn])
        drawn += 1


class Subpages:
    """The pages of several views, each drawn when it is asked for.

    Args:
        trace: the whole trace, or what `Trace.select` left of it.
        views: by the names of their pages.
        suffix: the ending of the pages' files.
        prepared: the trace as it is drawn from with edges by default, if that is there.

    Attributes:
        names: of the pages that are known so far: those of the views, then what can be opened in pages that were drawn.
    """

    def __init__(
        self, trace: TraceRecord, views: Mapping[str, View], suffix: str, prepared: Prepared | None = None
    ) -> None:
        self._whole = as_one_run(trace)
        self._views, self._suffix = views, suffix
        self._prepared: dict[str | None, Prepared] = {} if prepared is None else {None: prepared}  # by what edges are
        self._insides: dict[str, tuple[Callable[[], TraceRecord], View]] = {}
        self._of_calls: dict[bytes, str] = {}
        self.names = list(views)

    def draw(self, name: str) -> Page:
        """One of the pages in `names`."""
        if name in self._views:
            shown, how = self._whole, self._views[name]
            if how.edges not in self._prepared:
                self._prepared[how.edges] = prepare(shown, how.edges)
            drawing = draw_prepared(self._prepared[how.edges], how)
        else:
            inside, how = self._insides[name]
            shown = inside()
            drawing = draw(shown, how)
        numbers = shown.calls["call"].to_numpy()
        links = {
            box.id: self._inside(shown, numbers[drawing.calls[box.id]], box, how) + self._suffix
            for box in drawing.graph.boxes
            if box.id in drawing.closed
        }
        title = drawing.graph.title if name in self._views else f"{drawing.graph.title}: {name}"
        graph = replace(drawing.graph, title=title, members=_linked(drawing.graph.members, links))
        return Page(name, graph, {id: numbers[rows] for id, rows in drawing.calls.items()})

    def _inside(self, shown: TraceRecord, calls: np.ndarray, box: Box, how: View) -> str:
        """The name of the page that shows what is inside some calls."""
        key = calls.tobytes()
        if key not in self._of_calls:
            of_calls = shown.calls[np.isin(shown.calls["call"].to_numpy(), calls)]
            name = _file_name(f"{of_calls['phase'].iloc[0]}.{box.path}", set(self.names))
            # The page is about these modules, so they are open however much is in them.
            opened = tuple(map(escape, of_calls["path"].unique()))
            view = View(open=opened, max_nodes=how.max_nodes, edges=how.edges, fold=how.fold)
            self._of_calls[key] = name
            self._insides[name] = partial(shown.inside, calls), view
            self.names.append(name)
        return self._of_calls[key]


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
