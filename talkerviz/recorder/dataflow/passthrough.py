"""Tensors that a module call returns as it received them, and which later reads go through that call.

`y = identity(x)` leaves one tensor under two names, and nothing in the tensor tells which name an operation was given.
The bytecode of the calling function does: a read of `y` comes from the call, a read of `x` from what made `x`. Where
the names do not tell, as behind containers, attributes and helper functions, the read comes from the last such call.
"""

from __future__ import annotations

import dis
import functools
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from torch import Tensor

Span = tuple[tuple[int, int], tuple[int, int]]
"""Line and column where an expression begins and where it ends."""

_NO_NAMES: frozenset[str] = frozenset()
# Instructions between a call and the assignment of its result that leave the result as it is.
_MOVE_RESULTS = {"CACHE", "PRECALL", "EXTENDED_ARG", "NOP", "SWAP", "COPY", "BUILD_TUPLE", "UNPACK_SEQUENCE"}
_OPERATIONS = ("CALL", "BINARY", "UNARY", "COMPARE", "INPLACE")


@dataclass(frozen=True)
class _Variables:
    """Where a code object loads and stores its variables.

    Attributes:
        offsets, spans: each instruction's byte offset and expression, in order.
        loads: variables and the spans at which they are loaded.
        operations: spans of calls, sums and the like, which give another value than their operands.
        stores: for each instruction, the variables that the result of a call there is assigned to.
    """

    offsets: list[int]
    spans: list[Span | None]
    loads: list[tuple[str, Span]]
    operations: set[Span]
    stores: list[frozenset[str]]

    def place(self, frame: FrameType) -> int:
        """The instruction that a frame of this code executes."""
        return bisect_right(self.offsets, frame.f_lasti) - 1


@functools.lru_cache(maxsize=4096)
def _variables_of(code: CodeType) -> _Variables:
    instructions = list(dis.get_instructions(code))
    spans = [_span(one) for one in instructions]
    loads: list[tuple[str, Span]] = []
    operations: set[Span] = set()
    for instruction, span in zip(instructions, spans, strict=True):
        if span is None:
            continue
        loads += [(name, span) for name in _names(instruction, "LOAD")]
        if instruction.opname.startswith(_OPERATIONS):
            operations.add(span)
    stores = [
        _stored_after(instructions, spans, place) if one.opname.startswith("CALL") else _NO_NAMES
        for place, one in enumerate(instructions)
    ]
    return _Variables([one.offset for one in instructions], spans, loads, operations, stores)


def _span(instruction: dis.Instruction) -> Span | None:
    position = getattr(instruction, "positions", None)  # Python 3.10 has none
    if position is None or None in position:
        return None
    line, last_line, column, last_column = position
    return (line, column), (last_line, last_column)


def _names(instruction: dis.Instruction, action: str) -> list[str]:
    """The variables that an instruction loads, or stores; one may do both, to several."""
    parts = instruction.opname.split("_")
    kinds = [place for place, part in enumerate(parts[:-1]) if part in ("LOAD", "STORE")]
    if not kinds or not {"FAST", "DEREF", "NAME", "GLOBAL"} & set(parts):
        return []
    names = instruction.argval if isinstance(instruction.argval, tuple) else [instruction.argval]
    return [name for place, name in zip(kinds, names, strict=False) if parts[place] == action and isinstance(name, str)]


def _stored_after(instructions: Sequence[dis.Instruction], spans: Sequence[Span | None], place: int) -> frozenset[str]:
    call, stored = spans[place], set[str]()
    for instruction, span in zip(instructions[place + 1 :], spans[place + 1 :], strict=True):
        if names := _names(instruction, "STORE"):
            stored.update(names)
        elif stored or span is None or call is None:
            break
        elif instruction.opname not in _MOVE_RESULTS and _is_within(call, span):
            break  # an operand of a larger expression, which takes the result
        elif instruction.opname.startswith(("RETURN", "POP", "STORE", "JUMP")):
            break
    return frozenset(stored)


def _is_within(inner: Span, outer: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


@dataclass(frozen=True, slots=True)
class Passed:
    """A tensor that a call returned as it had received it.

    Attributes:
        number: the operation of kind `pass`.
        replaced: the operations that made the tensor.
        scope: the module call in whose code it was returned; None outside of all.
        frame: the `id` of the calling Python frame.
        code: its code.
        span: where the call stands in it; None if that is unknown.
        arguments: variables that the call was given.
        results: variables that its result was assigned to.
        offset, sizes, strides: the part of the storage that the tensor has.
    """

    number: int
    replaced: tuple[int, ...]
    scope: Any
    frame: int
    code: CodeType | None
    span: Span | None
    arguments: frozenset[str]
    results: frozenset[str]
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def begins_in(self, tensor: Tensor) -> bool:
        """Whether the first element of a tensor of the same storage is one of this tensor's."""
        left = int(tensor.storage_offset()) - self.offset
        for stride, size in sorted(zip(self.strides, self.sizes, strict=True), reverse=True):
            if stride and left > 0:
                left -= min(left // stride, size - 1) * stride
        return left == 0

    @property
    def last(self) -> int:
        """The last element in the storage."""
        return self.offset + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))


def passed(number: int, replaced: tuple[int, ...], scope: Any, frame: FrameType | None, tensor: Tensor) -> Passed:
    """Note a tensor that a call has returned as it had received it.

    Args:
        number: the operation of kind `pass`.
        replaced: the operations that made the tensor.
        scope: the module call around.
        frame: the Python frame that made the call.
        tensor: the tensor.
    """
    where = int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()
    if frame is None:
        return Passed(number, replaced, scope, 0, None, None, _NO_NAMES, _NO_NAMES, *where)
    variables = _variables_of(frame.f_code)
    place = variables.place(frame)
    span, results = variables.spans[place], variables.stores[place]
    arguments: set[str] = set()
    if span is not None:
        # What is called stands at the beginning of the call: `self.norms[i](x)`.
        inner = [one for one in variables.spans if one is not None and one[0] == span[0] and one[1] < span[1]]
        callee = max(inner, default=(span[0], span[0]))
        arguments = {name for name, at in variables.loads if _is_within(at, span) and not _is_within(at, callee)}
    names = frozenset(arguments) - results
    return Passed(number, replaced, scope, id(frame), frame.f_code, span, names, results, *where)


def sources_of(history: Sequence[Passed], tensor: Tensor, producers: tuple[int, ...]) -> tuple[int, ...]:
    """What an operation reads from, that is given a tensor now.

    Args:
        history: how tensors of this storage were passed on, in order.
        tensor: what it is given.
        producers: the operations that made the tensor.
    """
    left = [one for one in history if _is_about(one, tensor, producers)]
    read: dict[int, None] = {}
    while left:
        scope = left[-1].scope
        of_scope = [one for one in reversed(left) if one.scope is scope]
        left = [one for one in left if one.scope is not scope]
        chosen, original = _choose(of_scope)
        if chosen:
            read.update(dict.fromkeys(one.number for one in chosen))
            replaced = {number for one in chosen for number in one.replaced}
            partly = int(tensor.storage_offset()) < chosen[0].offset or _last(tensor) > chosen[0].last
            if not original:
                rest = producers if partly else [number for number in producers if number not in replaced]
                return tuple({**dict.fromkeys(rest), **read})
    return tuple({**dict.fromkeys(producers), **read})


def _is_about(one: Passed, tensor: Tensor, producers: tuple[int, ...]) -> bool:
    made = not set(one.replaced).isdisjoint(producers) if one.replaced else not producers
    return made and one.begins_in(tensor)


def _last(tensor: Tensor) -> int:
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset()) + sum((size - 1) * stride for size, stride in sizes)


def _choose(history: Sequence[Passed]) -> tuple[list[Passed], bool]:
    """Which of the calls that passed a tensor on, last first, a read goes through; whether one goes around them."""
    frames = {one.frame for one in history}
    for frame in _frames():
        if id(frame) not in frames:
            continue
        here = [one for one in history if one.frame == id(frame) and one.code is frame.f_code]
        variables = _variables_of(frame.f_code) if here else None
        span = variables.spans[variables.place(frame)] if variables is not None else None
        if variables is None or span is None:
            continue
        for only_operands in (True, False):
            names, inside = _read_in(variables, span, here, only_operands)
            chosen = {one.number: one for one in inside}
            original = False
            for name in names:
                through = next((one for one in here if name in one.results), None)
                if through is not None:
                    chosen[through.number] = through
                else:
                    original |= any(name in one.arguments for one in here)
            if chosen or original:
                return list(chosen.values()), original
        break
    return [history[0]], False


def _read_in(
    variables: _Variables, span: Span, history: Sequence[Passed], only_operands: bool
) -> tuple[set[str], list[Passed]]:
    """The variables that an expression loads, and the passing calls that are part of it.

    Args:
        variables: of its code.
        span: the expression.
        history: the passing calls.
        only_operands: without what is inside of other operations in the expression.
    """
    inner = [one for one in variables.operations if one != span and _is_within(one, span)] if only_operands else []
    of_passing = [one.span for one in history if one.span is not None and one.span != span]

    def counts(at: Span) -> bool:
        return _is_within(at, span) and not any(one != at and _is_within(at, one) for one in inner)

    inside = [one for one in history if one.span is not None and one.span != span and counts(one.span)]
    names = {name for name, at in variables.loads if counts(at) and not any(_is_within(at, one) for one in of_passing)}
    return names, inside


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
