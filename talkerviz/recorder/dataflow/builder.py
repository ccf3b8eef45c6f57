"""Builder of a `Flow`: operations and edges appended to columns of numbers during the run."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from talkerviz.recorder.tensor_signatures import Signatures
from talkerviz.trace.event_log import NO_TENSORS, Mark
from talkerviz.trace.flow import Flow, edges_frame, ops_frame
from talkerviz.trace.schema import Tensors

OP, INPUT, PASS = range(3)
_KINDS = ("op", "input", "pass")


class FlowBuilder:
    """Operations, numbered in the order in which they are added, and edges between them."""

    def __init__(self) -> None:
        self._lists: list[Tensors] = [()]
        self._signatures = Signatures(self._lists)
        self._names: dict[str, int] = {}
        # Columns of operations.
        self._name, self._kind, self._heavy, self._returned = array("i"), bytearray(), bytearray(), bytearray()
        self._call, self._after, self._mark = array("q"), array("q"), array("i")
        self._inputs, self._outputs = array("i"), array("i")
        self._late: dict[int, int] = {}  # inputs first seen inside an operation -> that operation
        # Columns of edges.
        self._sources, self._targets, self._states = array("i"), array("i"), bytearray()

    def __len__(self) -> int:
        return len(self._kind)

    def add(self, name: str, kind: int, call: int, after: int, mark: int) -> int:
        """Append an operation and return its number.

        Args:
            name: the operation's name.
            kind: `OP`, `INPUT` or `PASS`.
            call: edge at which the call around it began; -1 for none.
            after: edge at which the last call before it began; -1 for none.
            mark: number of its mark.
        """
        number = len(self._kind)
        self._name.append(self._names.setdefault(name, len(self._names)))
        self._heavy.append(False)
        self._returned.append(False)
        self._call.append(call)
        self._after.append(after)
        self._mark.append(mark)
        self._inputs.append(NO_TENSORS)
        self._outputs.append(NO_TENSORS)
        self._kind.append(kind)
        return number

    def describe(
        self, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, heavy: bool = False
    ) -> None:
        """Set an operation's input and output tensors.

        Args:
            number: the operation's number.
            args: its positional arguments.
            kwargs: its keyword arguments.
            out: its result.
            heavy: whether it is a product, reduction, sort or the like.
        """
        self._heavy[number] = heavy
        self._inputs[number] = self._signatures.of_inputs(args, kwargs)
        self._outputs[number] = self._signatures.of_output(out)

    def place_before(self, number: int, operation: int) -> None:
        """Order an input before the operation that was running when the input was first read."""
        self._late[number] = operation

    def mark_returned(self, number: int, call: int) -> None:
        """Mark an operation whose result a call returns, if the operation ran directly in that call."""
        self._returned[number] |= self._call[number] == call

    def is_input(self, number: int) -> bool:
        """Return whether an operation is an external input."""
        return self._kind[number] == INPUT

    def link(self, source: int, target: int, state: bool) -> None:
        """Append an edge.

        Args:
            source: number of the operation that is read from.
            target: number of the operation that reads.
            state: whether the target only kept a part of the source's result, and did not read it.
        """
        self._sources.append(source)
        self._targets.append(target)
        self._states.append(state)

    @property
    def link_count(self) -> int:
        """Number of edges."""
        return len(self._sources)

    def links(self, first: int) -> np.ndarray:
        """Return rows `source`, `target` and `state` of the edges from number `first` on."""
        columns = (self._sources[first:], self._targets[first:], list(self._states[first:]))
        links: np.ndarray = np.array(columns, dtype=np.int64).reshape(3, -1)
        return links

    def operations(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return name numbers, kinds and calls of the operations from `first` to before `last`."""
        name, kind, call = (
            np.array(list(column[first:last]), dtype=np.int64) for column in (self._name, self._kind, self._call)
        )
        return name, kind, call

    def late(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return pairs of a late input among these operations and the operation it came up in, counted from `first`."""
        return [(number - first, op - first) for number, op in self._late.items() if first <= number < last]

    def order(self) -> np.ndarray:
        """Return operations' numbers in flow order: an input precedes the operation in which it was first read."""
        rank = np.arange(len(self._kind), dtype=float)
        for number, operation in self._late.items():
            rank[number] = operation - 0.5
        order: np.ndarray = np.argsort(rank, kind="stable")
        return order

    def flow(self, begun: np.ndarray, marks: Sequence[Mark]) -> Flow:
        """Build the flow of all operations.

        Args:
            begun: for each edge, the number of the call that begins there; the last element, for -1, is no call.
            marks: the recording's marks.
        """
        order = self.order()
        row = np.empty(len(order), dtype=np.int64)
        row[order] = np.arange(len(order))

        def column(values: Sequence[int]) -> np.ndarray:
            ordered: np.ndarray = np.array(values, dtype=np.int64)[order]
            return ordered

        mark = [marks[number] for number in column(self._mark)]
        names = np.array(list(self._names), dtype=object)
        lists = np.empty(len(self._lists), dtype=object)
        for number, tensors in enumerate(self._lists):
            lists[number] = tensors
        ops = {
            "call": begun[column(self._call)],
            "after": begun[column(self._after)],
            "phase": [each.phase for each in mark],
            "frame": pd.array([each.frame for each in mark], "Int64"),
            "step": pd.array([each.step for each in mark], "Int64"),
            "name": names[column(self._name)],
            "kind": [_KINDS[kind] for kind in column(self._kind)],
            "heavy": column(self._heavy) != 0,
            "returned": column(self._returned) != 0,
            "inputs": lists[column(self._inputs)],
            "outputs": lists[column(self._outputs)],
        }
        # Sorted by target, source, state. The first of equal pairs is kept, so that a reading edge wins over `state`.
        edges = np.array([self._targets, self._sources, list(self._states)], dtype=np.int64).reshape(3, -1)
        edges[:2] = row[edges[:2]]
        edges = edges[:, np.lexsort(edges[::-1])]
        first = np.ones(edges.shape[1], dtype=bool)
        first[1:] = (edges[:2, 1:] != edges[:2, :-1]).any(axis=0)
        target, source, state = edges[:, first]
        return Flow(ops_frame(ops), edges_frame(source, target, state))
