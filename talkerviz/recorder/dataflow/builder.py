"""What a flow's recording writes down while the run goes on, as columns of numbers, and the `Flow` made of it."""

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


class FlowNotes:
    """Operations, numbered in the order in which they are added, and edges between them."""

    def __init__(self) -> None:
        self._lists: list[Tensors] = [()]
        self._signatures = Signatures(self._lists)
        self._names: dict[str, int] = {}
        # A place an operation.
        self._name, self._kind, self._heavy, self._returned = array("i"), bytearray(), bytearray(), bytearray()
        self._call, self._after, self._mark = array("q"), array("q"), array("i")
        self._inputs, self._outputs = array("i"), array("i")
        self._late: dict[int, int] = {}
        self._sources, self._targets, self._states = array("i"), array("i"), bytearray()

    def __len__(self) -> int:
        return len(self._kind)

    def add(self, name: str, kind: int, call: int, after: int, mark: int) -> int:
        """A new operation's number; calls are told by the edges at which they began, -1 for none."""
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
        """What an operation got and gave."""
        self._heavy[number] = heavy
        self._inputs[number] = self._signatures.of_inputs(args, kwargs)
        self._outputs[number] = self._signatures.of_output(out)

    def met_late(self, number: int, operation: int) -> None:
        """An input was met in the midst of an operation: it was there before it."""
        self._late[number] = operation

    def returned(self, number: int, call: int) -> None:
        """An operation's result is one of what a call returns: note it if it is the call that it ran in."""
        self._returned[number] |= self._call[number] == call

    def is_input(self, number: int) -> bool:
        """Whether an operation stands for a tensor from outside."""
        return self._kind[number] == INPUT

    def link(self, source: int, target: int, state: bool) -> None:
        """A new edge."""
        self._sources.append(source)
        self._targets.append(target)
        self._states.append(state)

    @property
    def links_noted(self) -> int:
        """How many edges there are."""
        return len(self._sources)

    def links(self, first: int) -> np.ndarray:
        """Rows `source`, `target` and `state` of the edges from a first one on."""
        columns = (self._sources[first:], self._targets[first:], list(self._states[first:]))
        found: np.ndarray = np.array(columns, dtype=np.int64).reshape(3, -1)
        return found

    def operations(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the operations from a first to before a last: numbers of their names, their kinds, and their calls."""
        name, kind, call = (
            np.array(list(column[first:last]), dtype=np.int64) for column in (self._name, self._kind, self._call)
        )
        return name, kind, call

    def late(self, first: int, last: int) -> list[tuple[int, int]]:
        """Of those operations the inputs that were met late, and in which operation, counted from the first."""
        return [(one - first, of - first) for one, of in self._late.items() if first <= one < last]

    def order(self) -> np.ndarray:
        """The operations' numbers in the order of the flow: an input comes before the operation that it was met in."""
        when = np.arange(len(self._kind), dtype=float)
        for number, operation in self._late.items():
            when[number] = operation - 0.5
        found: np.ndarray = np.argsort(when, kind="stable")
        return found

    def flow(self, begun: np.ndarray, marks: Sequence[Mark]) -> Flow:
        """All of it.

        Args:
            begun: edges -> the calls that begin there; its last place is that of -1, for no call.
            marks: the recording's.
        """
        order = self.order()
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))

        def column(values: Sequence[int]) -> np.ndarray:
            ordered: np.ndarray = np.array(values, dtype=np.int64)[order]
            return ordered

        mark = [marks[number] for number in column(self._mark)]
        names = np.array(list(self._names), dtype=object)
        lists = np.empty(len(self._lists), dtype=object)
        for at, tensors in enumerate(self._lists):
            lists[at] = tensors
        ops = {
            "call": begun[column(self._call)],
            "after": begun[column(self._after)],
            "phase": [one.phase for one in mark],
            "frame": pd.array([one.frame for one in mark], "Int64"),
            "step": pd.array([one.step for one in mark], "Int64"),
            "name": names[column(self._name)],
            "kind": [_KINDS[kind] for kind in column(self._kind)],
            "heavy": column(self._heavy) != 0,
            "returned": column(self._returned) != 0,
            "inputs": lists[column(self._inputs)],
            "outputs": lists[column(self._outputs)],
        }
        # In the order of targets, then sources; a tensor that was read was not only left.
        found = np.array([self._targets, self._sources, list(self._states)], dtype=np.int64).reshape(3, -1)
        found[:2] = place[found[:2]]
        found = found[:, np.lexsort(found[::-1])]
        first = np.ones(found.shape[1], dtype=bool)
        first[1:] = (found[:2, 1:] != found[:2, :-1]).any(axis=0)
        target, source, state = found[:, first]
        return Flow(ops_frame(ops), edges_frame(source, target, state))
