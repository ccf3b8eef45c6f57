"""Alignment of the modules of two traces: by path, through wrappers, and by structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property

import numpy as np
import pandas as pd

from talkerviz.trace.call_tree import parent_rows
from talkerviz.trace.flow import Flow
from talkerviz.trace.labels import call_shapes
from talkerviz.trace.trace import RecordT, TraceRecord

_MAX_WRAPPERS = 8  # nested wrappers of one module: DDP around torch.compile around PEFT are four
_MIN_SIMILARITY = 0.5  # share of equal submodules from which differently named modules are one that was renamed


@dataclass(frozen=True)
class Side:
    """Names of one trace's modules in a comparison.

    Attributes:
        names: path of each called module, and of the modules around it -> name in the comparison. Counterparts have
            one name, and no others do.
        wrappers: path of each wrapper that only this trace has, such as `DistributedDataParallel` -> its class.
        renamed: name in the comparison -> path, of modules whose own name differs from their counterpart's.
    """

    names: Mapping[str, str]
    wrappers: Mapping[str, str]
    renamed: Mapping[str, str]


def align(before: TraceRecord, after: TraceRecord) -> tuple[Side, Side]:
    """Pair the called modules of two traces.

    Children of a pair are paired by name. If the classes of a pair differ, wrappers around either are seen through: the
    two modules inside that have the most in common are the pair. Layers of lists of different lengths are paired in
    order, so that most of them are equal. What is left is paired with what is most similar in the other trace, if at
    least half of their submodules are equal: it was renamed.

    Returns:
        Names of the first and of the second trace's modules.
    """
    pairing = _Pairing()
    classes = common_classes(before, after)
    roots = _tree(before, classes[0]), _tree(after, classes[1])
    pairing.pair_children(*roots, "")
    sides: list[Side] = []
    for side, (root, mark) in enumerate(zip(roots, ("before", "after"), strict=True)):
        names, wrappers = dict(pairing.names[side]), pairing.wrappers[side]
        taken = {*pairing.names[0].values(), *(sides[0].names.values() if sides else ())}
        for node in root.inside():
            if node.path in names:
                continue
            if node.path in wrappers:
                position = wrappers[node.path]
                around = sum(wrappers.get(above.path) == position for above in node.around())
                name = f"{position} ({node.class_name}{f' {around + 1}' if around else ''})"
            else:
                above = names[node.parent.path] if node.parent and node.parent.path else ""
                name = f"{above}.{node.name}" if above else node.name
            # A removed layer may have the number of another layer's counterpart.
            names[node.path] = f"{name} ({mark})" if name in taken else name
        of_wrappers = {node.path: node.class_name for node in root.inside() if node.path in wrappers}
        sides.append(Side(names, of_wrappers, pairing.renamed[side]))
    return sides[0], sides[1]


def rename_paths(trace: RecordT, names: Mapping[str, str]) -> RecordT:
    """Replace the paths of a trace's modules by their names in a comparison."""
    paths = trace.calls["path"].cat.rename_categories(lambda path: names.get(str(path), str(path)))
    modules = tuple(module._replace(path=names.get(module.path, module.path)) for module in trace.modules)
    return replace(trace, calls=trace.calls.assign(path=paths), modules=modules)


def without_modules(trace: RecordT, paths: Mapping[str, str]) -> RecordT:
    """Remove the calls of some modules; calls and operations inside them move to the calls around."""
    calls = trace.calls
    dropped = calls["path"].isin(list(paths)).to_numpy()
    if not dropped.any():
        return trace
    parent = parent_rows(calls)
    levels = np.zeros(len(calls), dtype=np.int64)  # number of dropped calls around each
    for row in np.argsort(calls["depth"].to_numpy(), kind="stable"):
        above = parent[row]
        if above >= 0:
            levels[row] = levels[above] + dropped[above]
            if dropped[above]:
                parent[row] = parent[above]
    numbers = calls["call"].to_numpy()
    outer = np.where(parent >= 0, numbers[parent], -1)
    kept = calls[~dropped].assign(
        parent=pd.array(np.where(parent >= 0, outer, 0)[~dropped], "Int64"),
        depth=(calls["depth"].to_numpy() - levels)[~dropped].astype(np.int32),
    )
    kept.loc[(parent < 0)[~dropped], "parent"] = pd.NA
    flow = trace.flow
    if flow is not None:
        moved = dict(zip(numbers[dropped].tolist(), outer[dropped].tolist(), strict=True))
        flow = Flow(flow.ops.assign(call=flow.ops["call"].map(lambda call: moved.get(call, call))), flow.edges)
    return replace(trace, calls=kept, flow=flow)


def common_classes(before: TraceRecord, after: TraceRecord) -> tuple[dict[str, str], dict[str, str]]:
    """Map classes that differ between the traces only in a prefix to the shorter name."""
    ones, twos = ({str(name) for name in trace.calls["class"].unique()} for trace in (before, after))
    names: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for two in sorted(twos - ones):
        similar = [one for one in ones - twos if is_same_class(one, two)]
        if similar:
            one = min(similar, key=lambda name: (abs(len(name) - len(two)), name))
            names[0][one] = names[1][two] = min(one, two, key=len)
    return names


def is_same_class(one: str, two: str) -> bool:
    """Return whether two class names differ only in a prefix, as transformers' do from ours."""
    return one.endswith(two) or two.endswith(one)


@dataclass(eq=False)
class _Node:
    """A module that was called, or that is around one.

    Attributes:
        path, name, class_name: its path, the last part of it, and its class; empty for the root of all.
        parent: the module around it.
        shapes: shapes of its calls.
        children: modules in it, in the order in which they were first called.
    """

    path: str = ""
    name: str = ""
    class_name: str = ""
    parent: _Node | None = None
    shapes: frozenset[str] = frozenset()
    children: list[_Node] = field(default_factory=list)

    def inside(self) -> Iterator[_Node]:
        """Yield all modules in it, each before its children."""
        for child in self.children:
            yield child
            yield from child.inside()

    def around(self) -> Iterator[_Node]:
        """Yield the modules that it is in, the innermost first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    @cached_property
    def size(self) -> int:
        """Number of modules in it, with itself."""
        return 1 + sum(child.size for child in self.children)

    @cached_property
    def structure(self) -> tuple[object, ...]:
        """Class and, in any depth, names and classes of the modules in it; equal for equal modules."""
        return (self.class_name, tuple((child.name, child.structure) for child in self.children))

    @cached_property
    def content(self) -> Counter[tuple[str, str]]:
        """Names and classes of all modules in it, and its own class."""
        content = Counter([("", self.class_name)])
        content.update((node.name, node.class_name) for node in self.inside())
        return content

    def common(self, other: _Node) -> int:
        """Return the number of modules that both have, by name and class."""
        return (self.content & other.content).total()

    def similarity(self, other: _Node) -> float:
        """Return the share of equal submodules, 0 to 1 (Dice's coefficient)."""
        return 2 * self.common(other) / (self.size + other.size)

    def through_wrappers(self) -> Iterator[_Node]:
        """Yield the module, and what it wraps: the child with most of its modules, and what that one wraps."""
        node = self
        for _ in range(_MAX_WRAPPERS + 1):
            yield node
            largest = max(node.children, key=lambda child: child.size, default=None)
            if largest is None or largest.size * 2 < node.size:
                return
            node = largest


def _tree(trace: TraceRecord, classes: Mapping[str, str]) -> _Node:
    """Build the tree of the called modules."""
    calls = trace.calls
    class_of = {module.path: module.class_name for module in trace.modules}
    first = calls.drop_duplicates("path")
    class_of |= dict(zip(first["path"].astype(str), first["class"].astype(str), strict=True))
    pairs = pd.DataFrame({"path": calls["path"].astype(str), "shapes": call_shapes(calls)}).drop_duplicates()
    shapes = pairs.groupby("path", sort=False)["shapes"].agg(frozenset)
    root = _Node()
    nodes = {"": root}
    for path in first["path"].astype(str):
        above = ""
        for name in path.split("."):
            own = f"{above}.{name}" if above else name
            if own not in nodes:
                kind = class_of.get(own, "")
                node = _Node(own, name, classes.get(kind, kind), nodes[above], shapes.get(own, frozenset()))
                nodes[own] = node
                nodes[above].children.append(node)
            above = own
    return root


class _Pairing:
    """Pairs found so far, as names in the comparison and wrappers, for either trace."""

    def __init__(self) -> None:
        self.names: tuple[dict[str, str], dict[str, str]] = {}, {}
        self.wrappers: tuple[dict[str, str], dict[str, str]] = {}, {}
        self.renamed: tuple[dict[str, str], dict[str, str]] = {}, {}

    def pair_children(self, before: _Node, after: _Node, name: str) -> None:
        """Pair the children of two modules that are counterparts and have a name in the comparison."""
        for one, two in _paired_children(before, after):
            own = f"{name}.{two.name}" if name else two.name
            if one.name != two.name and not (one.name.isdecimal() and two.name.isdecimal()):
                self.renamed[0][own], self.renamed[1][own] = one.path, two.path
            self._pair(one, two, own)

    def _pair(self, before: _Node, after: _Node, name: str) -> None:
        one, two = _behind_wrappers(before, after)
        for side, (outer, inner) in enumerate(((before, one), (after, two))):
            node = inner
            while node is not outer and node.parent is not None:
                node = node.parent
                self.wrappers[side][node.path] = name
            self.names[side][inner.path] = name
        self.pair_children(one, two, name)


def _behind_wrappers(before: _Node, after: _Node) -> tuple[_Node, _Node]:
    """Return the two modules of one class inside that have the most in common; the two themselves if there are none."""
    if before.class_name == after.class_name:
        return before, after
    ones, twos = list(before.through_wrappers()), list(after.through_wrappers())
    best, most = (before, after), before.common(after)
    for i, one in enumerate(ones):
        for j, two in enumerate(twos):
            # Where both are wrapped, the wrappers hold nothing else, or a part that both have would be lost.
            alone = not (i and j) or (before.size - one.size, after.size - two.size) == (i, j)
            if alone and one.class_name == two.class_name and (common := one.common(two)) > most:
                best, most = (one, two), common
    return best


def _paired_children(before: _Node, after: _Node) -> Iterator[tuple[_Node, _Node]]:
    """Pair the children of two modules: by name or, in lists of different lengths, in order; then by similarity."""
    ones, twos = before.children, after.children
    numbered = bool(ones and twos) and all(child.name.isdecimal() for child in (*ones, *twos))
    if numbered and len(ones) != len(twos):
        pairs = list(_in_order(ones, twos))
    else:
        named = {child.name: child for child in ones}
        pairs = [(named[child.name], child) for child in twos if child.name in named]
    yield from pairs
    paired = {node.path for node in (one for one, _ in pairs)}, {node.path for node in (two for _, two in pairs)}
    left = [child for child in ones if child.path not in paired[0]]
    right = [child for child in twos if child.path not in paired[1]]
    if not before.path and len(left) == len(right) == 1:
        yield left[0], right[0]  # the model itself, recorded under two names
        return
    scores = {(i, j): _score(one, two) for i, one in enumerate(left) for j, two in enumerate(right)}
    taken: tuple[set[int], set[int]] = set(), set()
    for i, j in sorted(scores, key=lambda pair: (-scores[pair], abs(pair[0] - pair[1]), pair)):
        if scores[i, j] and i not in taken[0] and j not in taken[1]:
            yield left[i], right[j]
            taken[0].add(i)
            taken[1].add(j)


def _score(one: _Node, two: _Node) -> float:
    """Return how similar two modules of different names are; 0 if they are not one that was renamed."""
    inner = _behind_wrappers(one, two)
    if inner[0].size == inner[1].size == 1:
        return float(inner[0].class_name == inner[1].class_name and inner[0].shapes == inner[1].shapes)
    similarity = inner[0].similarity(inner[1])
    return similarity if similarity >= _MIN_SIMILARITY else 0.0


def _in_order(ones: Sequence[_Node], twos: Sequence[_Node]) -> Iterator[tuple[_Node, _Node]]:
    """Pair the elements of two lists in order, equal ones first, then the others between them."""
    structures: dict[object, int] = {}
    keys = [[structures.setdefault(node.structure, len(structures)) for node in nodes] for nodes in (ones, twos)]
    for kind, i, i_end, j, j_end in SequenceMatcher(a=keys[0], b=keys[1], autojunk=False).get_opcodes():
        if kind in ("equal", "replace"):
            for one, two in zip(ones[i:i_end], twos[j:j_end], strict=False):
                if kind == "equal" or one.class_name == two.class_name:
                    yield one, two
