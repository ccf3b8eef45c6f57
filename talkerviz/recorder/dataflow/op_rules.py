"""Rules of torch's operators for following tensors through them: arguments read, arguments written, views, copies."""

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

# Operators that only change layout, dtype or device, besides those with `torch.Tag.view_copy`.
_COPIES = {"_to_copy", "clone", "_pin_memory", "_unsafe_view", "_reshape_copy", "lift"}
# In-place operators that do not read the tensor that they write.
_OVERWRITES = {
    *("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_"),
    *("geometric_", "log_normal_"),
}
# In-place operators that write some rows, known only to the device, and leave the others.
_WRITES_ROWS = {
    *("index_put_", "_index_put_impl_", "index_copy_", "index_add_", "index_fill_", "index_reduce_", "scatter_"),
    *("scatter_add_", "scatter_reduce_", "put_", "masked_scatter_"),
}
# Operators without arithmetic and without a choice that depends on values: rearranging, filling, dropping.
_LIGHT = {
    *("cat", "stack", "copy", "fill", "zero", "index_put", "_index_put_impl", "index_copy", "index_fill", "scatter"),
    *("slice_scatter", "select_scatter", "as_strided_scatter", "diagonal_scatter", "masked_scatter", "put"),
    *("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
    *("roll", "flip", "repeat", "tril", "triu", "where", "masked_fill", "native_dropout", "glu", "normal", "uniform"),
    *("random", "bernoulli", "exponential", "floor_divide"),
}
_NAMES = {"truediv": "div", "floordiv": "floor_divide", "lift_fresh": "tensor", "lift_fresh_copy": "tensor"}
_REFLECTED = {  # have the forms `__radd__` and `__iadd__`
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
    """Treatment of tensors by one operator.

    Attributes:
        composite: whether it decomposes into other operators, which are followed instead.
        view: whether it moves no byte.
        copies: whether its result has the values of its argument.
        creates: whether it reads only sizes and dtypes of its arguments, no values.
        heavy: whether it is a product, reduction, sort or the like, see `trace.flow.OPS`.
        written: positions and names of the arguments that it writes.
        reads_written: whether it also reads the arguments that it writes.
        writes_rows: whether it writes only some rows of them.
        concatenates: whether it joins tensors; with all but one empty, it copies that one.
        collective: whether it moves tensors between processes.
    """

    composite: bool = False
    view: bool = False
    copies: bool = False
    creates: bool = False
    heavy: bool = True
    written: frozenset[int | str] = frozenset()
    reads_written: bool = False
    writes_rows: bool = False
    concatenates: bool = False
    collective: bool = False

    def split(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors among an operator's arguments that it reads, and that it writes; a tensor may be both."""
        reads: list[Tensor] = []
        writes: list[Tensor] = []
        for key, value in (*enumerate(args), *kwargs.items()):
            tensors = tensors_of(value)
            if key in self.written:
                writes += tensors
                if not self.reads_written:
                    continue
            reads += tensors
        return reads, writes


def tensors_of(out: Any) -> list[Tensor]:
    """Return the tensors in an operator's result or argument."""
    if isinstance(out, Tensor):
        return [out]
    return [tensor for item in out for tensor in tensors_of(item)] if isinstance(out, list | tuple) else []


@functools.cache
def rule_of(func: Any) -> Rule:
    """Return the rule of an operator."""
    if not isinstance(func, OpOverload):
        return Rule()  # a higher-order operator
    name, arguments = func._overloadpacket.__name__, func._schema.arguments
    if func.namespace == "c10d":
        return _rule_of_collective(name, [argument.name for argument in arguments])
    if func.namespace == "prim":  # reads a property
        return Rule(view=True)
    try:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            return Rule(composite=True)
    except RuntimeError:  # unknown to the dispatcher: `sym_size` reads a property of a nested tensor
        return Rule(view=True)
    if name in ("lift_fresh", "lift_fresh_copy"):
        return Rule(creates=True, heavy=False)
    if is_view(func):
        return Rule(view=True)
    written = [
        (index, argument)
        for index, argument in enumerate(arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]
    copies = name in _COPIES or torch.Tag.view_copy in func.tags
    creates = name.endswith("_like") or name.startswith("new_")
    takes_tensors = any("Tensor" in str(argument.type) for argument in arguments)
    return Rule(
        copies=copies,
        creates=creates,
        heavy=func._overloadpacket in flop_registry
        or not (
            copies
            or creates
            or not takes_tensors
            or torch.Tag.pointwise in func.tags
            or name.rstrip("_") in _LIGHT
            or name.startswith("_foreach_")
        ),
        written=frozenset(key for index, argument in written for key in (index, argument.name)),
        reads_written=not all(argument.kwarg_only for _, argument in written)
        and name not in _OVERWRITES
        and name not in _WRITES_ROWS,
        writes_rows=name in _WRITES_ROWS,
        concatenates=name == "cat",
        collective=func.namespace in COLLECTIVE,
    )


def _rule_of_collective(name: str, arguments: Sequence[str]) -> Rule:
    """Return the rule of a collective, from its arguments' names: its schema does not mark the arguments it writes.

    These are the arguments named `output...`, or the tensors themselves if there are none.
    """
    results = [(index, argument) for index, argument in enumerate(arguments) if argument.startswith("output")]
    in_place = [(index, argument) for index, argument in enumerate(arguments) if argument in ("tensors", "tensor")]
    written = results or ([] if name == "send" else in_place)
    if "barrier" in name:  # does not read its tensor
        return Rule(view=True)
    return Rule(
        written=frozenset(key for argument in written for key in argument),
        reads_written=not results and name != "recv_",
        collective=True,
    )


def name_of(func: Any) -> str:
    """Return a function's or operator's name in a flow: `a + b`, `a.add(b)` and `b.__radd__(a)` are `add`."""
    return _plain(getattr(getattr(func, "_overloadpacket", func), "__name__", type(func).__name__))


@functools.cache
def _plain(name: str) -> str:
    bare = name.strip("_") if name.startswith("__") else name.lstrip("_")
    inplace = False
    if name.startswith("__") and bare[0] in "ri" and bare[1:] in _REFLECTED:
        inplace, bare = bare[0] == "i", bare[1:]
    return _NAMES.get(bare, bare) + "_" * inplace
