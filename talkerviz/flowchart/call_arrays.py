"""A trace as one tree of rows in arrays: calls, the operations between them, and above all a row a phase and frame.

Everything that folds is worked out on these arrays, so that a million calls take seconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from talkerviz.flowchart.kv_cache import merge_cache_growth
from talkerviz.flowchart.model import phase_title
from talkerviz.trace import TraceRecord
from talkerviz.trace.labels import distinct_pairs
from talkerviz.trace.schema import Tensors

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a path that is a number: a place in a list of modules

Lists = tuple[Tensors, Tensors]


@dataclass(frozen=True, eq=False)
class CallArrays:
    """Calls come first, in the order in which they began, then operations, then one row a phase and frame.

    Attributes:
        trace: what the rows are of.
        calls, ops: how many rows of each.
        parent: the row in which each stands; -1 for phases.
        depth: parents have a smaller one.
        name: the number of what it is called where it stands.
        names: name's number -> `layers.#`, where numbers that tell siblings apart are left open.
        kind: the number of a call's class; of an operation, of its kind and its tensors' dtypes and ranks.
        signature: the number of the tensors in and out; `lists` has them by number.
        loose: the same number for tensors that differ only in how far a cache has grown.
        first, count: where each row's children stand in `children`, and how many they are.
        children: rows, those of one parent in the order of the run.
        position: the place of each row among its parent's children.
        phases: the name of each phase row's phase, and its frame, None for what is in none.
        path: of each call, the place of its path among the categories of the trace's paths.
        host_ns, self_ns: of each call; not a number where it was not measured.
        whole_ns: the time inside all calls that no other made.
    """

    trace: TraceRecord
    calls: int
    ops: int
    parent: np.ndarray
    depth: np.ndarray
    name: np.ndarray
    names: Sequence[str]
    kind: np.ndarray
    signature: np.ndarray
    lists: Sequence[Lists]
    loose: np.ndarray
    first: np.ndarray
    count: np.ndarray
    children: np.ndarray
    position: np.ndarray
    phases: Sequence[tuple[str, int | None]]
    path: np.ndarray
    host_ns: np.ndarray
    self_ns: np.ndarray
    whole_ns: float

    @property
    def first_phase(self) -> int:
        """The first row that is a phase's."""
        return self.calls + self.ops

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """All rows, those of one depth together, phases first: what a row stands in is in a level before its own."""
        order = np.argsort(self.depth, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.depth[order])) + 1)

    @cached_property
    def frame(self) -> np.ndarray:
        """The frame that each row is of; -1 for none."""
        frames = np.array([-1 if frame is None else frame for _, frame in self.phases], dtype=np.int64)
        frame: np.ndarray = frames[self.phase - self.first_phase]
        return frame

    @cached_property
    def phase(self) -> np.ndarray:
        """The row of the phase that each row stands in, or is."""
        phase = np.full(len(self.parent), -1)
        phase[self.first_phase :] = np.arange(self.first_phase, len(phase))
        return self.handed_down(phase)

    @cached_property
    def given(self) -> np.ndarray:
        """Whether each row stands for a tensor that comes from outside."""
        return np.isin(self.name, [number for number, name in enumerate(self.names) if name.startswith(" input ")])

    def handed_down(self, values: np.ndarray) -> np.ndarray:
        """Each row's value, or that of the nearest row around it that has one; -1 for none."""
        values = values.copy()
        for level in self.levels:
            missing = level[(values[level] < 0) & (self.parent[level] >= 0)]
            values[missing] = values[self.parent[missing]]
        return values

    def readers_of(self, operations: np.ndarray) -> np.ndarray:
        """The rows of the operations that read what some operations make; empty without flow."""
        if self.trace.flow is None:
            return np.empty(0, dtype=np.int64)
        edges = self.trace.flow.edges
        read = edges["target"].to_numpy()[np.isin(edges["source"].to_numpy(), operations - self.calls)]
        readers: np.ndarray = self.calls + read[read >= 0]
        return readers

    def children_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All children of some rows, parent by parent, and for each the place of its parent among the rows given."""
        count = self.count[rows]
        owner = np.repeat(np.arange(len(rows)), count)
        before = np.cumsum(count) - count
        places = np.repeat(self.first[rows] - before, count) + np.arange(len(owner))
        return self.children[places], owner


def call_arrays(trace: TraceRecord, flow: bool) -> CallArrays:
    """The rows of a trace, or of what `Trace.select` left of it; with its operations if `flow`."""
    calls = trace.calls
    n = len(calls)
    numbers = calls["call"].to_numpy()
    ops = trace.flow.ops if flow and trace.flow is not None else None
    m = 0 if ops is None else len(ops)

    parent = np.full(n + m, -1)
    parent[:n] = places(numbers, calls["parent"].fillna(-1).to_numpy(dtype=np.int64))
    depth = np.zeros(n + m, dtype=np.int64)
    depth[:n] = calls["depth"].to_numpy()
    time = np.arange(n + m, dtype=np.int64)
    signature = np.empty(n + m, dtype=np.int64)
    lists: list[Lists] = []
    known: dict[Lists, int] = {}
    signature[:n] = _signatures(calls["inputs"], calls["outputs"], known, lists)
    if ops is not None:
        parent[n:] = places(numbers, ops["call"].to_numpy())
        depth[n:] = np.where(parent[n:] >= 0, depth[parent[n:]] + 1, 0)
        time[n:] = np.searchsorted(numbers, ops["after"].to_numpy(), side="right") - 1
        signature[n:] = _signatures(ops["inputs"], ops["outputs"], known, lists)

    phase_codes, phase_names = pd.factorize(
        pd.concat([calls["phase"].astype(object), *([] if ops is None else [ops["phase"].astype(object)])])
    )
    frame = np.concatenate(
        [table["frame"].to_numpy(dtype=np.int64, na_value=-1) for table in (calls, *([] if ops is None else [ops]))]
    )
    phases = _add_phases(parent, phase_codes, frame, time)
    phase_rows = n + m + np.arange(len(phases))
    parent = np.concatenate([parent, np.full(len(phases), -1)])
    depth = np.concatenate([depth, np.full(len(phases), -1)])

    name, names = _names(calls, ops, parent)
    classes, _ = pd.factorize(calls["class"].astype(object))
    kind = np.concatenate([classes, np.zeros(m + len(phases), dtype=np.int64)])
    if ops is not None:
        kind[n : n + m] = -1 - _forms_of_operations(ops)
    loose = np.concatenate([merge_cache_growth(calls, parent[:n], signature[:n], lists), signature[n:]])

    inside = np.flatnonzero(parent >= 0)
    order = inside[np.lexsort((inside, time[inside], parent[inside]))]
    count = np.bincount(parent[inside], minlength=len(parent))
    first = np.cumsum(count) - count
    position = np.zeros(len(parent), dtype=np.int64)
    position[order] = np.arange(len(order)) - first[parent[order]]
    padding = np.full(len(phase_rows), -1)
    host_ns, self_ns = (calls[name].to_numpy(dtype=float, na_value=np.nan) for name in ("host_ns", "host_self_ns"))
    return CallArrays(
        trace=trace,
        calls=n,
        ops=m,
        parent=parent,
        depth=depth,
        name=np.concatenate([name, padding]),
        names=names,
        kind=kind,
        signature=np.concatenate([signature, padding]),
        lists=lists,
        loose=np.concatenate([loose, padding]),
        first=first,
        count=count,
        children=order,
        position=position,
        phases=[(phase_title(phase_names[code] if code >= 0 else None), at) for code, at in phases],
        path=calls["path"].cat.codes.to_numpy(),
        host_ns=host_ns,
        self_ns=self_ns,
        whole_ns=float(host_ns[parent[:n] >= n + m].sum()),
    )


def places(numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rows of calls by number; -1 for those that are not there."""
    if not len(numbers):
        return np.full(len(wanted), -1)
    found = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return np.where(numbers[found] == wanted, found, -1)


def _add_phases(
    parent: np.ndarray, phase: np.ndarray, frame: np.ndarray, time: np.ndarray
) -> list[tuple[int, int | None]]:
    """Give what has no parent one: a row for its phase and frame, after all others, in the order they began in."""
    top = np.flatnonzero(parent < 0)
    top = top[np.argsort(time[top], kind="stable")]
    frames = int(frame[top].max(initial=-1)) + 2
    unique, first, which = np.unique((phase[top] + 1) * frames + frame[top] + 1, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    parent[top] = len(parent) + place[which.reshape(-1)]
    pairs = zip(*(values.tolist() for values in np.divmod(unique[order], frames)), strict=True)
    return [(code - 1, at - 1 if at else None) for code, at in pairs]


def _signatures(inputs: pd.Series, outputs: pd.Series, known: dict[Lists, int], lists: list[Lists]) -> np.ndarray:
    """A number for each row's tensors in and out; equal lists have equal numbers."""
    which, first = distinct_pairs(inputs, outputs)
    numbers = np.empty(len(first), dtype=np.int64)
    for place, pair in enumerate(zip(inputs.to_numpy()[first], outputs.to_numpy()[first], strict=True)):
        number = known.setdefault(pair, len(known))
        if number == len(lists):
            lists.append(pair)
        numbers[place] = number
    found: np.ndarray = numbers[which]
    return found


def _forms_of_operations(ops: pd.DataFrame) -> np.ndarray:
    """A number for each operation's kind and what its tensors are, whatever their sizes and however many."""
    numbers: dict[object, int] = {}
    which, first = distinct_pairs(ops["inputs"], ops["outputs"])
    of_pair = np.empty(len(first), dtype=np.int64)
    for place, lists in enumerate(zip(ops["inputs"].to_numpy()[first], ops["outputs"].to_numpy()[first], strict=True)):
        forms = tuple(frozenset((tensor.dtype, len(tensor.shape)) for tensor in tensors) for tensors in lists)
        of_pair[place] = numbers.setdefault(forms, len(numbers))
    found: np.ndarray = of_pair[which] * len(ops["kind"].cat.categories) + ops["kind"].cat.codes.to_numpy()
    return found


def _names(calls: pd.DataFrame, ops: pd.DataFrame | None, parent: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """What each call and operation is called where it stands, as a number, and the names by number."""
    n = len(calls)
    path = calls["path"].cat.codes.to_numpy().astype(np.int64)
    paths = list(calls["path"].cat.categories)
    above = np.where((parent[:n] >= 0) & (parent[:n] < n), path[np.minimum(parent[:n], max(n - 1, 0))], -1)
    pairs, which = np.unique(above * (len(paths) + 1) + path, return_inverse=True)
    numbers: dict[str, int] = {}
    of_pair = []
    for pair in pairs:
        caller, own = divmod(int(pair), len(paths) + 1)
        text = NUMBER.sub("#", relative(paths[own], paths[caller] if caller >= 0 else ""))
        of_pair.append(numbers.setdefault(text, len(numbers)))
    found = np.array(of_pair, dtype=np.int64)[which.reshape(-1)] if n else np.empty(0, dtype=np.int64)
    if ops is None:
        return found, list(numbers)
    kinds = ops["kind"].astype(str) + " " + ops["name"].astype(str)
    codes, texts = pd.factorize(kinds)
    # A space keeps an operation's name from being a module's.
    shift = np.array([numbers.setdefault(f" {text}", len(numbers)) for text in texts], dtype=np.int64)
    return np.concatenate([found, shift[codes]]), list(numbers)


def relative(path: str, caller: str) -> str:
    """A module's path as seen from the module that called it."""
    return path.removeprefix(f"{caller}.") if caller else path


def with_numbers(pattern: str, paths: Sequence[str]) -> str:
    """`layers.#` and the paths that it stands for -> `layers.0-19`; the paths end in what the pattern is of."""
    parts = pattern.split(".")
    tails = [path.split(".")[-len(parts) :] for path in paths]
    # A module may itself be called `#`.
    numbers = [part == "#" and all(tail[place].isdecimal() for tail in tails) for place, part in enumerate(parts)]
    return ".".join(
        ranges({int(tail[place]) for tail in tails}) if numbers[place] else part for place, part in enumerate(parts)
    )


def ranges(numbers: set[int]) -> str:
    """`0-3,7` of 0, 1, 2, 3 and 7; of many that are not neighbours the first two and the last, `0,2,…,22`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ",".join(texts if len(texts) <= 4 else [*texts[:2], "…", texts[-1]])
