"""Calls, operations and phases of a trace as one tree of rows in arrays.

Folding works on these arrays, so that a million calls take seconds.
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

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a numeric part of a path: an index in a module list

Lists = tuple[Tensors, Tensors]


@dataclass(frozen=True, eq=False)
class CallArrays:
    """Rows of a trace: calls in the order in which they began, then operations, then a row a phase and frame.

    Attributes:
        trace: the trace.
        calls, ops: number of rows of calls and of operations.
        parent: row of each row's parent; -1 for phases.
        depth: depth of each row; parents have a smaller one.
        name: number of each row's name relative to its parent.
        names: name number -> name with open indices, `layers.#`.
        kind: number of a call's class; of an operation's kind with its tensors' dtypes and ranks.
        signature: number of the pair of input and output tensor lists, an index of `lists`.
        lists: pairs of tensor lists.
        loose: signature that is equal for tensors which differ only by the growth of a KV cache.
        first, count: start and number of each row's children in `children`.
        children: rows grouped by parent, in the order of the run.
        position: index of each row among its parent's children.
        phases: phase name and frame of each phase row; None for no frame.
        path: for each call the category code of its path.
        host_ns, self_ns: times of each call; NaN if not measured.
        whole_ns: time inside all top calls.
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
        """First row of a phase."""
        return self.calls + self.ops

    @cached_property
    def levels(self) -> list[np.ndarray]:
        """Rows by depth, phases first: a parent is in an earlier level than its children."""
        order = np.argsort(self.depth, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.depth[order])) + 1)

    @cached_property
    def frame(self) -> np.ndarray:
        """Frame of each row; -1 for none."""
        frames = np.array([-1 if frame is None else frame for _, frame in self.phases], dtype=np.int64)
        frame: np.ndarray = frames[self.phase - self.first_phase]
        return frame

    @cached_property
    def phase(self) -> np.ndarray:
        """Phase row of each row; its own row for a phase."""
        phase = np.full(len(self.parent), -1)
        phase[self.first_phase :] = np.arange(self.first_phase, len(phase))
        return self.inherited(phase)

    @cached_property
    def is_input(self) -> np.ndarray:
        """Mask of the rows of input tensors."""
        return np.isin(self.name, [number for number, name in enumerate(self.names) if name.startswith(" input ")])

    def inherited(self, values: np.ndarray) -> np.ndarray:
        """Replace -1 by the value of the nearest ancestor that has one."""
        values = values.copy()
        for level in self.levels:
            missing = level[(values[level] < 0) & (self.parent[level] >= 0)]
            values[missing] = values[self.parent[missing]]
        return values

    def readers_of(self, operations: np.ndarray) -> np.ndarray:
        """Return the rows of operations that read the results of some operations; empty without flow."""
        if self.trace.flow is None:
            return np.empty(0, dtype=np.int64)
        edges = self.trace.flow.edges
        read = edges["target"].to_numpy()[np.isin(edges["source"].to_numpy(), operations - self.calls)]
        readers: np.ndarray = self.calls + read[read >= 0]
        return readers

    def children_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all children of some rows, parent by parent, and for each the index of its parent in `rows`."""
        count = self.count[rows]
        owner = np.repeat(np.arange(len(rows)), count)
        before = np.cumsum(count) - count
        indices = np.repeat(self.first[rows] - before, count) + np.arange(len(owner))
        return self.children[indices], owner


def call_arrays(trace: TraceRecord, flow: bool) -> CallArrays:
    """Build the rows of a trace or a selection; with its operations if `flow`."""
    calls = trace.calls
    n = len(calls)
    numbers = calls["call"].to_numpy()
    ops = trace.flow.ops if flow and trace.flow is not None else None
    m = 0 if ops is None else len(ops)

    parent = np.full(n + m, -1)
    parent[:n] = find_rows(numbers, calls["parent"].fillna(-1).to_numpy(dtype=np.int64))
    depth = np.zeros(n + m, dtype=np.int64)
    depth[:n] = calls["depth"].to_numpy()
    time = np.arange(n + m, dtype=np.int64)
    signature = np.empty(n + m, dtype=np.int64)
    lists: list[Lists] = []
    known: dict[Lists, int] = {}
    signature[:n] = _signatures(calls["inputs"], calls["outputs"], known, lists)
    if ops is not None:
        parent[n:] = find_rows(numbers, ops["call"].to_numpy())
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
        kind[n : n + m] = -1 - _operation_kinds(ops)
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


def find_rows(numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the rows of calls by number, in an ascending array of numbers; -1 for missing calls."""
    if not len(numbers):
        return np.full(len(wanted), -1)
    rows = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return np.where(numbers[rows] == wanted, rows, -1)


def _add_phases(
    parent: np.ndarray, phase: np.ndarray, frame: np.ndarray, time: np.ndarray
) -> list[tuple[int, int | None]]:
    """Set the parent of top rows to a new row of their phase and frame; returns the new rows, in order of start."""
    top = np.flatnonzero(parent < 0)
    top = top[np.argsort(time[top], kind="stable")]
    frames = int(frame[top].max(initial=-1)) + 2
    unique, first, which = np.unique((phase[top] + 1) * frames + frame[top] + 1, return_index=True, return_inverse=True)
    order = np.argsort(first)
    new_row = np.empty(len(order), dtype=np.int64)
    new_row[order] = np.arange(len(order))
    parent[top] = len(parent) + new_row[which.reshape(-1)]
    pairs = zip(*(values.tolist() for values in np.divmod(unique[order], frames)), strict=True)
    return [(code - 1, at - 1 if at else None) for code, at in pairs]


def _signatures(inputs: pd.Series, outputs: pd.Series, known: dict[Lists, int], lists: list[Lists]) -> np.ndarray:
    """Assign numbers to pairs of tensor lists; equal pairs have equal numbers."""
    which, first = distinct_pairs(inputs, outputs)
    numbers = np.empty(len(first), dtype=np.int64)
    for index, pair in enumerate(zip(inputs.to_numpy()[first], outputs.to_numpy()[first], strict=True)):
        number = known.setdefault(pair, len(known))
        if number == len(lists):
            lists.append(pair)
        numbers[index] = number
    by_row: np.ndarray = numbers[which]
    return by_row


def _operation_kinds(ops: pd.DataFrame) -> np.ndarray:
    """Assign numbers to the operations' kinds and their tensors' dtypes and ranks, regardless of sizes and counts."""
    numbers: dict[object, int] = {}
    which, first = distinct_pairs(ops["inputs"], ops["outputs"])
    of_pair = np.empty(len(first), dtype=np.int64)
    for index, lists in enumerate(zip(ops["inputs"].to_numpy()[first], ops["outputs"].to_numpy()[first], strict=True)):
        kinds = tuple(frozenset((tensor.dtype, len(tensor.shape)) for tensor in tensors) for tensors in lists)
        of_pair[index] = numbers.setdefault(kinds, len(numbers))
    by_row: np.ndarray = of_pair[which] * len(ops["kind"].cat.categories) + ops["kind"].cat.codes.to_numpy()
    return by_row


def _names(calls: pd.DataFrame, ops: pd.DataFrame | None, parent: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Assign numbers to the names of calls and operations relative to their parents; returns numbers and names."""
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
    call_names = np.array(of_pair, dtype=np.int64)[which.reshape(-1)] if n else np.empty(0, dtype=np.int64)
    if ops is None:
        return call_names, list(numbers)
    kind, name = ops["kind"].cat, ops["name"].cat
    codes, pairs = pd.factorize(kind.codes.to_numpy(np.int64) * len(name.categories) + name.codes.to_numpy())
    # The leading space separates operations' names from modules'.
    texts = [
        f" {kind.categories[pair // len(name.categories)]} {name.categories[pair % len(name.categories)]}"
        for pair in pairs.tolist()
    ]
    shift = np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
    return np.concatenate([call_names, shift[codes]]), list(numbers)


def relative(path: str, caller: str) -> str:
    """Return a module's path relative to its caller's."""
    return path.removeprefix(f"{caller}.") if caller else path


def with_numbers(pattern: str, paths: Sequence[str]) -> str:
    """Fill the open indices of a name: `layers.#` with the paths of layers 0 to 19 -> `layers.0-19`."""
    parts = pattern.split(".")
    tails = [path.split(".")[-len(parts) :] for path in paths]
    # A module may itself be named `#`.
    is_index = [part == "#" and all(tail[i].isdecimal() for tail in tails) for i, part in enumerate(parts)]
    return ".".join(ranges({int(tail[i]) for tail in tails}) if is_index[i] else part for i, part in enumerate(parts))


def ranges(numbers: set[int]) -> str:
    """Format numbers as ranges: `0-3,7`; of more than four ranges the first two and the last, `0,2,…,22`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ",".join(texts if len(texts) <= 4 else [*texts[:2], "…", texts[-1]])
