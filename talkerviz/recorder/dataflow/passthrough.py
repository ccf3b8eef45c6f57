"""Alias passthrough: module calls that return a tensor argument unchanged, and the later reads that go through them.

`y = identity(x)` leaves one tensor under two names, and the tensor itself does not show which name an operation was
given. The bytecode of the calling function does: a read of `y` comes from the call, a read of `x` from the producer of
`x`. If the names are ambiguous, as behind containers, attributes and helper functions, the read comes from the last
such call.
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
"""Line and column of an expression's begin, and of its end."""

_NO_NAMES: frozenset[str] = frozenset()
# Instructions between a call and the assignment of its result that leave the result unchanged.
_MOVE_RESULTS = {"CACHE", "PRECALL", "EXTENDED_ARG", "NOP", "SWAP", "COPY", "BUILD_TUPLE", "UNPACK_SEQUENCE"}
_OPERATIONS = ("CALL", "BINARY", "UNARY", "COMPARE", "INPLACE")


@dataclass(frozen=True)
class _Variables:
    """Positions in a code object at which it loads and stores its variables.

    Attributes:
        offsets, spans: byte offset and expression of each instruction, in order.
        loads: variables and the spans at which they are loaded.
        operations: spans of calls, sums and the like, whose value differs from their operands.
        stores: for each instruction, the variables that a call's result is assigned to.
    """

    offsets: list[int]
    spans: list[Span | None]
    loads: list[tuple[str, Span]]
    operations: set[Span]
    stores: list[frozenset[str]]

    def instruction(self, frame: FrameType) -> int:
        """Return the index of the instruction that a frame of this code executes."""
        return bisect_right(self.offsets, frame.f_lasti) - 1


@functools.lru_cache(maxsize=4096)
def _variables_of(code: CodeType) -> _Variables:
    instructions = list(dis.get_instructions(code))
    spans = [_span(instruction) for instruction in instructions]
    loads: list[tuple[str, Span]] = []
    operations: set[Span] = set()
    for instruction, span in zip(instructions, spans, strict=True):
        if span is None:
            continue
        loads += [(name, span) for name in _names(instruction, "LOAD")]
        if instruction.opname.startswith(_OPERATIONS):
            operations.add(span)
    stores = [
        _stored_after(instructions, spans, index) if instruction.opname.startswith("CALL") else _NO_NAMES
        for index, instruction in enumerate(instructions)
    ]
    return _Variables([instruction.offset for instruction in instructions], spans, loads, operations, stores)


def _span(instruction: dis.Instruction) -> Span | None:
    position = getattr(instruction, "positions", None)  # Python 3.10 has none
    if position is None or None in position:
        return None
    line, last_line, column, last_column = position
    return (line, column), (last_line, last_column)


def _names(instruction: dis.Instruction, action: str) -> list[str]:
    """Return the variables that an instruction loads, or stores; `STORE_FAST_LOAD_FAST` does both.

    Args:
        instruction: the instruction.
        action: `LOAD` or `STORE`.
    """
    parts = instruction.opname.split("_")
    kinds = [index for index, part in enumerate(parts[:-1]) if part in ("LOAD", "STORE")]
    if not kinds or not {"FAST", "DEREF", "NAME", "GLOBAL"} & set(parts):
        return []
    names = instruction.argval if isinstance(instruction.argval, tuple) else [instruction.argval]
    return [name for index, name in zip(kinds, names, strict=False) if parts[index] == action and isinstance(name, str)]


def _stored_after(instructions: Sequence[dis.Instruction], spans: Sequence[Span | None], index: int) -> frozenset[str]:
    call, stored = spans[index], set[str]()
    for instruction, span in zip(instructions[index + 1 :], spans[index + 1 :], strict=True):
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
class Passthrough:
    """A tensor that a call returned unchanged.

    Attributes:
        number: the operation of kind `pass`.
        producers: the operations that made the tensor.
        scope: the module call whose code made this call; None outside of all module calls.
        frame: `id` of the calling Python frame.
        code: code object of that frame.
        span: expression of the call in the code; None if unknown.
        arguments: variables among the call's arguments.
        results: variables that its result is assigned to.
        offset, sizes, strides: part of the storage that the tensor covers, in elements.
    """

    number: int
    producers: tuple[int, ...]
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
        """Return whether the first element of a tensor of the same storage is one of this tensor's."""
        remainder = int(tensor.storage_offset()) - self.offset
        for stride, size in sorted(zip(self.strides, self.sizes, strict=True), reverse=True):
            if stride and remainder > 0:
                remainder -= min(remainder // stride, size - 1) * stride
        return remainder == 0

    @property
    def last(self) -> int:
        """Storage index of the tensor's last element."""
        return self.offset + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))


def alias_passthrough(
    number: int, producers: tuple[int, ...], scope: Any, frame: FrameType | None, tensor: Tensor
) -> Passthrough:
    """Describe a tensor that a call has returned unchanged.

    Args:
        number: the operation of kind `pass`.
        producers: the operations that made the tensor.
        scope: the module call around the call; None for none.
        frame: the Python frame that made the call.
        tensor: the tensor.
    """
    region = int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()
    if frame is None:
        return Passthrough(number, producers, scope, 0, None, None, _NO_NAMES, _NO_NAMES, *region)
    variables = _variables_of(frame.f_code)
    index = variables.instruction(frame)
    span, results = variables.spans[index], variables.stores[index]
    arguments: set[str] = set()
    if span is not None:
        # The callee is at the beginning of the call's expression: `self.norms[i](x)`.
        inner = [each for each in variables.spans if each is not None and each[0] == span[0] and each[1] < span[1]]
        callee = max(inner, default=(span[0], span[0]))
        arguments = {name for name, load in variables.loads if _is_within(load, span) and not _is_within(load, callee)}
    names = frozenset(arguments) - results
    return Passthrough(number, producers, scope, id(frame), frame.f_code, span, names, results, *region)


def sources_of(history: Sequence[Passthrough], tensor: Tensor, producers: tuple[int, ...]) -> tuple[int, ...]:
    """Return the operations that the current read of a tensor goes to: its producers, or calls that returned it.

    Args:
        history: passthroughs of tensors of this storage, in order.
        tensor: the tensor that is read.
        producers: the operations that made the tensor.
    """
    remaining = [passthrough for passthrough in history if _returned(passthrough, tensor, producers)]
    read: dict[int, None] = {}
    while remaining:
        scope = remaining[-1].scope
        in_scope = [passthrough for passthrough in reversed(remaining) if passthrough.scope is scope]
        remaining = [passthrough for passthrough in remaining if passthrough.scope is not scope]
        chosen, original = _choose(in_scope)
        if chosen:
            read.update(dict.fromkeys(passthrough.number for passthrough in chosen))
            replaced = {number for passthrough in chosen for number in passthrough.producers}
            partly = int(tensor.storage_offset()) < chosen[0].offset or _last(tensor) > chosen[0].last
            if not original:
                rest = producers if partly else [number for number in producers if number not in replaced]
                return tuple({**dict.fromkeys(rest), **read})
    return tuple({**dict.fromkeys(producers), **read})


def _returned(passthrough: Passthrough, tensor: Tensor, producers: tuple[int, ...]) -> bool:
    """Return whether a passthrough's tensor has the same producers as a tensor, and its first element."""
    made = not set(passthrough.producers).isdisjoint(producers) if passthrough.producers else not producers
    return made and passthrough.begins_in(tensor)


def _last(tensor: Tensor) -> int:
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset()) + sum((size - 1) * stride for size, stride in sizes)


def _choose(history: Sequence[Passthrough]) -> tuple[list[Passthrough], bool]:
    """Return the passthroughs that the current read goes through, and whether it also reads the original tensor.

    Args:
        history: passthroughs of one scope, last first.
    """
    frames = {passthrough.frame for passthrough in history}
    for frame in _frames():
        if id(frame) not in frames:
            continue
        here = [each for each in history if each.frame == id(frame) and each.code is frame.f_code]
        variables = _variables_of(frame.f_code) if here else None
        span = variables.spans[variables.instruction(frame)] if variables is not None else None
        if variables is None or span is None:
            continue
        for only_operands in (True, False):
            names, inside = _read_in(variables, span, here, only_operands)
            chosen = {passthrough.number: passthrough for passthrough in inside}
            original = False
            for name in names:
                through = next((passthrough for passthrough in here if name in passthrough.results), None)
                if through is not None:
                    chosen[through.number] = through
                else:
                    original |= any(name in passthrough.arguments for passthrough in here)
            if chosen or original:
                return list(chosen.values()), original
        break
    return [history[0]], False


def _read_in(
    variables: _Variables, span: Span, history: Sequence[Passthrough], only_operands: bool
) -> tuple[set[str], list[Passthrough]]:
    """Return the variables that an expression loads, and the passthrough calls that are part of it.

    Args:
        variables: the variables of its code.
        span: the expression.
        history: the passthroughs.
        only_operands: whether to leave out the inside of other operations in the expression.
    """
    inner = [each for each in variables.operations if each != span and _is_within(each, span)] if only_operands else []
    call_spans = [each.span for each in history if each.span is not None and each.span != span]

    def counts(part: Span) -> bool:
        return _is_within(part, span) and not any(outer != part and _is_within(part, outer) for outer in inner)

    inside = [each for each in history if each.span is not None and each.span != span and counts(each.span)]
    names = {
        name
        for name, load in variables.loads
        if counts(load) and not any(_is_within(load, call) for call in call_spans)
    }
    return names, inside


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
