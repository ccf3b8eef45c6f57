"""The calls of a trace folded into a tree: repeated calls of a module are one node, like siblings are one."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from talkerviz.graph.phase import phase_title
from talkerviz.trace import Trace
from talkerviz.trace.shapes import shapes_of_calls

_NUMBERED = re.compile(r"^(.*?)(\d+)$")


@dataclass(frozen=True)
class TreeNode:
    """A module under the module that called it, or a phase above both.

    Attributes:
        path: the module's path; of folded siblings `layers.0-19`.
        class_name: its class; empty for a phase.
        modules: how many sibling modules were folded into this node.
        calls: calls of all of them.
        total_ns: time inside those calls; None where it was not measured.
        shapes: the shapes of those calls, commonest first.
        children: what they called, in the order of the first call.
    """

    path: str
    class_name: str
    modules: int
    calls: int
    total_ns: int | None
    shapes: tuple[str, ...]
    children: tuple[TreeNode, ...]


@dataclass
class _Open:
    path: str
    class_name: str
    calls: int = 0
    total_ns: int | None = 0
    shapes: Counter[str] = field(default_factory=Counter)
    children: dict[str, _Open] = field(default_factory=dict)

    def child(self, path: str, class_name: str) -> _Open:
        return self.children.setdefault(path, _Open(path, class_name))

    def add(self, host_ns: object, shapes: str) -> None:
        self.calls += 1
        self.shapes[shapes] += 1
        missing = self.total_ns is None or pd.isna(host_ns)  # type: ignore[call-overload]
        self.total_ns = None if missing else self.total_ns + int(host_ns)  # type: ignore[call-overload]


def call_tree(trace: Trace) -> list[TreeNode]:
    """One tree a phase, in the order of the run."""
    phases: dict[str, _Open] = {}
    open_calls: dict[int, _Open] = {}
    calls = trace.calls
    columns = ("phase", "call", "parent", "path", "class", "host_ns")
    for row in zip(*(calls[name].astype(object) for name in columns), shapes_of_calls(calls), strict=True):
        phase, call, parent, path, class_name, host_ns, shapes = row
        name = phase_title(phase)
        root = phases.setdefault(name, _Open(name, ""))
        # The caller may not be among the calls selected.
        caller = None if pd.isna(parent) else open_calls.get(parent)
        node = (caller or root).child(path, class_name)
        node.add(host_ns, shapes)
        open_calls[call] = node
        if caller is None:
            root.add(host_ns, "")
    return [_closed(phase) for phase in phases.values()]


def _closed(node: _Open) -> TreeNode:
    children = tuple(_fold([_closed(child) for child in node.children.values()]))
    shapes = tuple(text for text, _ in node.shapes.most_common())
    return TreeNode(node.path, node.class_name, 1, node.calls, node.total_ns, shapes, children)


def _fold(siblings: list[TreeNode]) -> list[TreeNode]:
    """Join siblings that differ in their number alone: `layers.0`, `layers.1`, ... alike in all but time."""
    runs: list[list[TreeNode]] = []
    # The path that would continue a run -> the run. Its members need not be neighbours: a loop calls them in turn.
    continues: dict[str, list[TreeNode]] = {}
    for node in siblings:
        run = continues.pop(node.path, None)
        if run is None or _form(run[0]) != _form(node):
            run = []
            runs.append(run)
        run.append(node)
        if found := _NUMBERED.match(node.path):
            continues[f"{found[1]}{int(found[2]) + 1}"] = run
    return [_joined(run) for run in runs]


def _form(node: TreeNode) -> object:
    """All of a node but its times and its own name."""
    children = tuple((child.path.removeprefix(node.path), _form(child)) for child in node.children)
    return (node.class_name, node.modules, node.calls, node.shapes, children)


def _joined(run: list[TreeNode]) -> TreeNode:
    if len(run) == 1:
        return run[0]
    found = _NUMBERED.match(run[-1].path)
    last = found[2] if found else ""
    path = f"{run[0].path}-{last}"
    return _sum(run, path)


def _sum(nodes: list[TreeNode], path: str) -> TreeNode:
    times = [node.total_ns for node in nodes]
    first = nodes[0]
    children = tuple(
        _sum(list(column), path + column[0].path.removeprefix(first.path))
        for column in zip(*(node.children for node in nodes), strict=True)
    )
    return TreeNode(
        path,
        first.class_name,
        sum(node.modules for node in nodes),
        sum(node.calls for node in nodes),
        None if None in times else sum(time for time in times if time is not None),
        first.shapes,
        children,
    )
