"""Linked pages: a flowchart, and a page for the inside of each collapsed box."""

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
"""Name of the first page, which leads to all others."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME_CHARS = 100  # file systems allow 255 bytes, of which a suffix and a folder's copy need some


@dataclass(frozen=True)
class Page:
    """Page of a flowchart.

    Attributes:
        name: file name without suffix.
        graph: the flowchart; links of its boxes are file names.
        calls: id of a box or group -> numbers of its calls.
    """

    name: str
    graph: Graph
    calls: Mapping[str, np.ndarray]


def subpages(trace: TraceRecord, view: View, suffix: str) -> Iterator[Page]:
    """Yield a page of a view, then a page for each collapsed box, recursively.

    Args:
        trace: a trace or a selection.
        view: view of the first page; the other pages are expanded as far as its `max_nodes` allows.
        suffix: suffix of the pages' files, such as `.svg`.
    """
    pages, drawn = Subpages(trace, {FIRST: view}, suffix), 0
    while drawn < len(pages.names):
        yield pages.draw(pages.names[drawn])
        drawn += 1


class Subpages:
    """Pages of several views, drawn on demand.

    Args:
        trace: a trace or a selection.
        views: page name -> view.
        suffix: suffix of the pages' files.
        prepared: the trace prepared for default edges, if available.

    Attributes:
        names: names of the pages known so far: those of the views, then subpages of the pages that were drawn.
    """

    def __init__(
        self, trace: TraceRecord, views: Mapping[str, View], suffix: str, prepared: Prepared | None = None
    ) -> None:
        self._whole = as_one_run(trace)
        self._views, self._suffix = views, suffix
        self._prepared: dict[str | None, Prepared] = {} if prepared is None else {None: prepared}  # by kind of edges
        self._insides: dict[str, tuple[Callable[[], TraceRecord], View]] = {}
        self._of_calls: dict[bytes, str] = {}
        self.names = list(views)

    def draw(self, name: str) -> Page:
        """Draw a page in `names`."""
        if name in self._views:
            shown, view = self._whole, self._views[name]
            if view.edges not in self._prepared:
                self._prepared[view.edges] = prepare(shown, view.edges)
            drawing = draw_prepared(self._prepared[view.edges], view)
        else:
            inside, view = self._insides[name]
            shown = inside()
            drawing = draw(shown, view)
        numbers = shown.calls["call"].to_numpy()
        links = {
            box.id: self._inside(shown, numbers[drawing.calls[box.id]], box, view) + self._suffix
            for box in drawing.graph.boxes
            if box.id in drawing.closed
        }
        title = drawing.graph.title if name in self._views else f"{drawing.graph.title}: {name}"
        graph = replace(drawing.graph, title=title, members=_linked(drawing.graph.members, links))
        return Page(name, graph, {id: numbers[rows] for id, rows in drawing.calls.items()})

    def _inside(self, shown: TraceRecord, calls: np.ndarray, box: Box, view: View) -> str:
        """Return the name of the page with the inside of some calls; registers it on first use."""
        key = calls.tobytes()
        if key not in self._of_calls:
            of_calls = shown.calls[np.isin(shown.calls["call"].to_numpy(), calls)]
            name = _file_name(f"{of_calls['phase'].iloc[0]}.{box.path}", set(self.names))
            # The page is about these modules, so they are expanded at any size.
            opened = tuple(map(escape, of_calls["path"].unique()))
            subview = View(open=opened, max_nodes=view.max_nodes, edges=view.edges, fold=view.fold)
            self._of_calls[key] = name
            self._insides[name] = partial(shown.inside, calls), subview
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
    name = _UNSAFE.sub("_", text)[:_MAX_NAME_CHARS].strip("._") or "page"
    same = sum(known == name or re.fullmatch(rf"{re.escape(name)}-\d+", known) is not None for known in taken)
    return f"{name}-{same + 1}" if same else name
