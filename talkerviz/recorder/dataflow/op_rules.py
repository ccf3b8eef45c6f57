"""What is to be known of torch's functions and operators to follow tensors through them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

from talkerviz.recorder.instruments.flop_formulas import COLLECTIVE, is_view

# The values stay what they are: another layout, dtype or device. `torch.Tag.view_copy` has the others.
_MOVES = {"_to_copy", "clone", "_pin_memory", "_unsafe_view", "_reshape_copy", "lift"}
# Written without being read.
_OVERWRITES = {
    *("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_"),
    *("geometric_", "log_normal_"),
}
# Written in some rows, which only the device knows; the others stay.
_WRITES_ROWS = {
    *("index_put_", "_index_put_impl_", "index_copy_", "index_add_", "index_fill_", "index_reduce_", "scatter_"),
    *("scatter_add_", "scatter_reduce_", "put_", "masked_scatter_"),
}
# Neither arithmetic nor a choice that depends on values: arranging, filling, dropping.
_LIGHT = {
    *("cat", "stack", "copy", "fill", "zero", "index_put", "_index_put_impl", "index_copy", "index_fill", "scatter"),
    *("slice_scatter", "select_scatter", "as_strided_scatter", "diagonal_scatter", "masked_scatter", "put"),
    *("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
    *("roll", "flip", "repeat", "tril", "triu", "where", "masked_fill", "native_dropout", "glu", "normal", "uniform"),
    *("random", "bernoulli", "exponential", "floor_divide"),
}
_NAMES = {"truediv": "div", "floordiv": "floor_divide", "lift_fresh": "tensor", "lift_fresh_copy": "tensor"}
_TWO_SIDED = {
    *(
        "add",
        "sub",
        "mul",
        "div",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    ),
}


@dataclass(frozen=True)
class Rule:
    """How one operator treats tensors.

    Attributes:
        composite: it is made of others, which are to be seen in its place.
        view: it moves no byte.
        moves: it gives the values that it gets.
        creates: whatever it gets, it does not look at the values.
        heavy: see `trace.flow.OPS`.
        written: positions and names of the arguments that it writes.
        reads_written: whether it reads those as well.
        rows: whether it writes only some rows of them.
        joins: whether it puts tensors behind each other: with empty ones, it gives the other as it is.
        collective: whether it moves tensors between processes.
    """

    composite: bool = False
    view: bool = False
    moves: bool = False
    creates: bool = False
    heavy: bool = True
    written: frozenset[int | str] = frozenset()
    reads_written: bool = False
    rows: bool = False
    joins: bool = False
    collective: bool = False

    def split(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Of an operator's arguments the tensors that are read and those that are written; one may be both."""
        reads: list[Tensor] = []
        writes: list[Tensor] = []
        for place, value in (*enumerate(args), *kwargs.items()):
            found = tensors_of(value)
            if place in self.written:
                writes += found
                if not self.reads_written:
                    continue
            reads += found
        return reads, writes


def tensors_of(out: Any) -> list[Tensor]:
    """The tensors that an operator gave."""
    if isinstance(out, Tensor):
        return [out]
    return [tensor for item in out for tensor in tensors_of(item)] if isinstance(out, list | tuple) else []


@functools.cache
def rule_of(func: Any) -> Rule:
    """The rule of an operator."""
    if not isinstance(func, OpOverload):
        return Rule()  # a higher-order one
    name, arguments = func._overloadpacket.__name__, func._schema.arguments
    if func.namespace == "c10d":
        return _rule_of_collective(name, [one.name for one in arguments])
    if func.namespace == "prim":  # asks for a property
        return Rule(view=True)
    try:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            return Rule(composite=True)
    except RuntimeError:  # the dispatcher does not know it: `sym_size` asks a nested tensor for a property
        return Rule(view=True)
    if name in ("lift_fresh", "lift_fresh_copy"):
        return Rule(creates=True, heavy=False)
    if is_view(func):
        return Rule(view=True)
    places = [(place, one) for place, one in enumerate(arguments) if one.alias_info and one.alias_info.is_write]
    moves = name in _MOVES or torch.Tag.view_copy in func.tags
    creates = name.endswith("_like") or name.startswith("new_")
    gets_tensors = any("Tensor" in str(one.type) for one in arguments)
    return Rule(
        moves=moves,
        creates=creates,
        heavy=func._overloadpacket in flop_registry
        or not (
            moves
            or creates
            or not gets_tensors
            or torch.Tag.pointwise in func.tags
            or name.rstrip("_") in _LIGHT
            or name.startswith("_foreach_")
        ),
        written=frozenset(key for place, one in places for key in (place, one.name)),
        reads_written=not all(one.kwarg_only for _, one in places)
        and name not in _OVERWRITES
        and name not in _WRITES_ROWS,
        rows=name in _WRITES_ROWS,
        joins=name == "cat",
        collective=func.namespace in COLLECTIVE,
    )


def _rule_of_collective(name: str, arguments: Sequence[str]) -> Rule:
    """Its schema does not tell what it writes, but names do: results, or in place of any the tensors themselves."""
    results = [(place, one) for place, one in enumerate(arguments) if one.startswith("output")]
    in_place = [(place, one) for place, one in enumerate(arguments) if one in ("tensors", "tensor")]
    written = results or ([] if name == "send" else in_place)
    if "barrier" in name:  # what it is given is never looked at
        return Rule(view=True)
    return Rule(
        written=frozenset(key for place in written for key in place),
        reads_written=not results and name != "recv_",
        collective=True,
    )


def name_of(func: Any) -> str:
    """What a function or operator is called in a flow: `a + b`, `a.add(b)` and `b.__radd__(a)` are `add`."""
    return _plain(getattr(getattr(func, "_overloadpacket", func), "__name__", type(func).__name__))


@functools.cache
def _plain(name: str) -> str:
    bare = name.strip("_") if name.startswith("__") else name.lstrip("_")
    inplace = False
    if name.startswith("__") and bare[0] in "ri" and bare[1:] in _TWO_SIDED:
        inplace, bare = bare[0] == "i", bare[1:]
    return _NAMES.get(bare, bare) + "_" * inplace
