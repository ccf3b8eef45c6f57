"""Descriptions of a call's tensors at any nesting depth, with equal numbers for equal lists of tensors.

Containers are traversed without running code of theirs: tuples, lists and dicts as they are stored, other objects by
their attributes. A container that is lazy, endless, or raises when it is read is therefore left alone. The number of
values visited for one call is bounded. `native/describe.c` writes the same rows in C, and calls `kind_of`, `unpack` and
`TensorKinds` of this file; `Describer` serves installations without a C compiler.
"""

from __future__ import annotations

import enum
from array import array
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MemberDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from talkerviz.trace.schema import Tensors
from talkerviz.trace.tensor_rows import (
    END,
    INPUTS,
    MAPPING,
    MAX_ITEMS,
    MAX_LISTED,
    OUTPUT,
    SEQUENCE,
    TENSOR,
    TensorKind,
    read_row,
)

is_tracing: Callable[[], bool] = torch._C._is_tracing
NO_LAYER = -1
# Bounds of one call's description, the same as in describe.h, which gives the units.
MERGED_ITEMS, MAX_ENTRIES, MAX_LOOKS, MAX_NESTING = 8, 256, 1024, 8
_MAX_NAMED_TENSORS = 8  # more tensors in one argument, as in a cache, all have the argument's name
_PLAIN = (type(None), int, float, str, bool)


class Kind(enum.IntEnum):
    """Traversal of a type's values; `describe.h` has the same numbers."""

    NOTHING = 0
    TENSOR = 1
    SEQUENCE = 2
    MAPPING = 3
    OBJECT = 4
    CACHE = 5
    UNPACK = 6


def kind_of(kind: type) -> Kind:
    """Return the `Kind` of a type's values."""
    if issubclass(kind, Tensor):
        return Kind.TENSOR
    if issubclass(kind, dict):
        return Kind.MAPPING
    if issubclass(kind, tuple | list):
        return Kind.NOTHING if kind is torch.Size else Kind.SEQUENCE
    if issubclass(kind, UserDict | UserList | deque):
        return Kind.UNPACK
    if kind.__module__ in ("builtins", "typing", "logging") or issubclass(kind, nn.Module | type | enum.Enum):
        return Kind.NOTHING
    has_dict = kind.__dictoffset__ != 0
    # Caches are recognized by name: each layer reads only its own part of one.
    if has_dict and ("cache" in kind.__name__.lower() or "cache" in kind.__module__.lower()):
        return Kind.CACHE
    if _slots(kind):
        return Kind.UNPACK
    return Kind.OBJECT if has_dict else Kind.NOTHING


def _slots(kind: type) -> dict[str, MemberDescriptorType]:
    slots: dict[str, MemberDescriptorType] = {}
    for owner in reversed(kind.__mro__):
        if "__slots__" in vars(owner):
            slots |= {name: value for name, value in vars(owner).items() if isinstance(value, MemberDescriptorType)}
    return slots


def unpack(value: Any) -> dict[Any, Any] | list[Any] | None:
    """Return the content of a value of kind `UNPACK`, read without running its code."""
    kind = type(value)
    if issubclass(kind, deque):
        count, half = deque.__len__(value), MAX_ITEMS // 2
        indices = range(count) if count <= MAX_ITEMS else (*range(half), *range(count - half, count))
        return [deque.__getitem__(value, index) for index in indices]
    attributes: dict[str, Any] = object.__getattribute__(value, "__dict__") if kind.__dictoffset__ else {}
    if issubclass(kind, UserDict | UserList):
        inside = attributes.get("data")
        return inside if type(inside) in (dict, list) else None
    content = dict(attributes)
    for name, slot in _slots(kind).items():
        try:
            content[name] = slot.__get__(value)
        except AttributeError:  # not set
            continue
    return content


class TensorKinds:
    """Numbering of pairs of dtype and device.

    Args:
        kinds: list that gets each new pair, at the index that is its number.
    """

    def __init__(self, kinds: list[TensorKind]) -> None:
        self._kinds = kinds
        self._numbers: dict[tuple[torch.dtype, torch.device], int] = {}

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor's dtype and device."""
        with torch._C.DisableTorchFunctionSubclass():
            pair = tensor.dtype, tensor.device
        if pair not in self._numbers:
            self._kinds.append((str(pair[0]).removeprefix("torch."), str(pair[1])))
            self._numbers[pair] = len(self._kinds) - 1
        return self._numbers[pair]

    def row(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Return the number of a tensor's dtype and device, and its sizes; None while `torch.jit.trace` runs.

        A size that is not an int, such as a symbolic one, is -1.
        """
        if is_tracing():  # reading a shape would become an operator of the traced graph
            return None
        return (self.number(tensor), *_sizes(tensor))


_shape_of: Callable[[Tensor], Sequence[Any]] = Tensor.shape.__get__  # type: ignore[attr-defined]


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    # The sizes of torch.Tensor itself: a subclass may override `shape` with code of any kind.
    with torch._C.DisableTorchFunctionSubclass():
        if is_lazy(tensor):
            return ()  # a lazy module's parameter has no shape yet
        try:
            return tuple(size if type(size) is int else -1 for size in _shape_of(tensor))
        except (RuntimeError, ValueError):
            return (-1,) * Tensor.dim(tensor)  # a nested tensor's rows differ


class Signatures:
    """Numbering of lists of tensors, in Python.

    Args:
        lists: list that gets each new list of tensors, at the index that is its number; index 0 is the empty one.
    """

    def __init__(self, lists: list[Tensors]) -> None:
        self._lists = lists
        self._names: dict[str, int] = {}
        self._kinds: list[TensorKind] = []
        self._describer = Describer(self._names, TensorKinds(self._kinds))
        self._numbers: dict[Tensors, int] = {(): 0}
        self._known = [0]

    def of_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """Return the number of a call's tensor arguments, named by position or by keyword."""
        return self._number(self._describer.of_inputs(args, kwargs))

    def of_output(self, output: Any) -> int:
        """Return the number of a call's result: a bare tensor is named `output`, others by their path in it."""
        return self._number(self._describer.of_output(output))

    def _number(self, row: int) -> int:
        if row == len(self._known):
            new = array("q", self._describer.take())
            tensors = read_row(new[2:], list(self._names), self._kinds)
            if tensors not in self._numbers:
                self._lists.append(tensors)
                self._numbers[tensors] = len(self._lists) - 1
            self._known.append(self._numbers[tensors])
        return self._known[row]


class Describer:
    """Describes calls' tensors as numbered rows, as `describe.c` does in C.

    Args:
        names: numbers of dict keys and attribute names; new ones are added.
        kinds: numbers of dtypes and devices.
    """

    def __init__(self, names: dict[str, int], kinds: TensorKinds) -> None:
        self._names, self._tensor_kinds = names, kinds
        self._kinds: dict[type, Kind] = {}
        self._rows: dict[tuple[int, ...], int] = {}
        self._next = 1
        self._fresh = array("q")

    def of_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], layer: int = NO_LAYER) -> int:
        """Return the number of a call's arguments; 0 without tensors.

        Args:
            args: the positional arguments.
            kwargs: the keyword arguments.
            layer: index of the only layer of a cache to describe; `NO_LAYER` for all.
        """
        traversal = _Traversal(self, layer)
        items = traversal.items(args, NO_LAYER) or [0, END]
        entries = traversal.entries(kwargs, False, False)
        return self._number([INPUTS, *items, *entries] if entries or len(items) > 2 else [])

    def of_output(self, output: Any, layer: int = NO_LAYER) -> int:
        """Return the number of a call's result; 0 without tensors."""
        value = _Traversal(self, layer).value(output, False)
        return self._number([OUTPUT, *value] if value else [])

    def take(self) -> bytes:
        """Return the rows that are new since the last call, in the format of `describe.c`."""
        taken, self._fresh = self._fresh, array("q")
        return taken.tobytes()

    def kind(self, value_type: type) -> Kind:
        """Return the kind of a type, from a cache."""
        kind = self._kinds.get(value_type)
        if kind is None:
            kind = self._kinds[value_type] = kind_of(value_type)
        return kind

    def name(self, key: Any) -> int:
        """Return the number of an entry's name."""
        text = _text_of(key)
        return self._names.setdefault(text, len(self._names))

    def tensor(self, tensor: Tensor) -> list[int]:
        """Return a tensor's part of a row."""
        row = self._tensor_kinds.row(tensor)
        return [] if row is None else [TENSOR, row[0], len(row) - 1, *row[1:]]

    def _number(self, row: list[int]) -> int:
        if not row:
            return 0
        key = tuple(row)
        number = self._rows.get(key)
        if number is None:
            number = self._rows[key] = self._next
            self._next += 1
            self._fresh.extend((number, len(row), *row))
        return number


class _Traversal:
    """Traversal of one call's values; describe.h has its bounds."""

    def __init__(self, describer: Describer, layer: int) -> None:
        self._describer, self._layer = describer, layer
        self._looks = MAX_LOOKS
        self._above: list[int] = []

    def value(self, value: Any, of_cache: bool) -> list[int]:
        self._looks -= 1
        kind = type(value)
        if kind in _PLAIN:
            return []
        try:
            return self._value(value, self._describer.kind(kind), of_cache)
        except Exception:  # a value that cannot be read is not described
            return []

    def _value(self, value: Any, kind: Kind, of_cache: bool) -> list[int]:
        if kind is Kind.TENSOR:
            return self._describer.tensor(value)
        if kind is Kind.NOTHING or len(self._above) > MAX_NESTING or id(value) in self._above:
            return []
        self._above.append(id(value))
        try:
            if kind is Kind.UNPACK:
                inside = unpack(value)
                if inside is None:
                    return []
                kind, value = Kind.MAPPING if isinstance(inside, dict) else Kind.SEQUENCE, inside
            if kind is Kind.SEQUENCE:
                count = tuple.__len__(value) if isinstance(value, tuple) else list.__len__(value)
                only = self._layer if of_cache and 1 < count > self._layer else NO_LAYER
                tokens = self.items(value, only)
                return [SEQUENCE, *tokens] if tokens else []
            if kind is Kind.MAPPING:
                tokens = self.entries(value, False, of_cache)
            else:
                attributes = object.__getattribute__(value, "__dict__")
                tokens = self.entries(attributes, kind is Kind.CACHE and self._layer >= 0, False)
            return [MAPPING, *tokens] if tokens else []
        finally:
            self._above.pop()

    def items(self, values: Any, only: int) -> list[int]:
        get = tuple.__getitem__ if isinstance(values, tuple) else list.__getitem__
        count = tuple.__len__(values) if isinstance(values, tuple) else list.__len__(values)
        few = type(values) is list and count > 0 and type(list.__getitem__(values, 0)) is Tensor
        most = MAX_LISTED if few else MAX_ITEMS
        half = most // 2
        if only >= 0:
            inside = self.value(get(values, only), False)
            return [-1, 1, *inside, END] if inside else []
        different: list[tuple[int, list[int]]] = []
        for bit in range(min(count, most)):
            if self._looks <= 0:
                break
            index = bit if bit < half or count <= most else count - most + bit
            inside = self.value(get(values, index), False)
            if not inside:
                continue
            alike = range(len(different) - 1, max(-1, len(different) - 5), -1) if count > MERGED_ITEMS else ()
            known = next((at for at in alike if different[at][1] == inside), None)
            if known is None:
                different.append((1 << bit, inside))
            else:
                different[known] = different[known][0] | 1 << bit, inside
        if not different:
            return []
        length = 2 * count + few if count > most else 0
        return [length, *(token for mask, inside in different for token in (mask, *inside)), END]

    def entries(self, values: Mapping[Any, Any], of_cache: bool, of_layers: bool) -> list[int]:
        items: Any = dict.items(values) if isinstance(values, dict) else values.items()
        if of_layers and self._layer >= 0 and type(values) is dict and len(values) > 1 and self._layer in values:
            items = [("*", values[self._layer])]
        tokens: list[int] = []
        for visited, (key, value) in enumerate(items):
            if visited >= MAX_ENTRIES or self._looks <= 0:
                break
            inside = self.value(value, of_cache)
            if inside:
                tokens += [1 + self._describer.name(key), *inside]
        return [*tokens, END] if tokens else []


def _text_of(key: Any) -> str:
    """Return the name of an entry; `?` for a key whose `str` would run the user's code."""
    if type(key) is str:
        return key
    plain = type(key) in _PLAIN or (type(key) is tuple and len(key) <= MAX_LISTED and {*map(type, key)} <= {*_PLAIN})
    return str(key) if plain else "?"


_KINDS: dict[type, Kind] = {}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in a value that its description contains."""
    for _, tensor in _walk(value, (), (), [MAX_LOOKS]):
        yield tensor


def named_tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors in a value with their dotted paths, or all with `name` if they are many, as in a cache.

    Args:
        value: the value.
        name: name of the value itself.
    """
    tensors = [*_walk(value, (), (), [MAX_LOOKS])]
    for path, tensor in tensors:
        yield ".".join((name, *path)) if len(tensors) <= _MAX_NAMED_TENSORS else name, tensor


def _walk(
    value: Any, path: tuple[str, ...], above: tuple[int, ...], looks: list[int]
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Iterate over tensors with their paths; `looks` holds the number of values that may still be visited."""
    looks[0] -= 1
    kind = _KINDS.get(type(value))
    if kind is None:
        kind = _KINDS[type(value)] = kind_of(type(value))
    if kind is Kind.TENSOR:
        yield path, value
        return
    if kind is Kind.NOTHING or len(above) > MAX_NESTING or id(value) in above:
        return
    above = (*above, id(value))
    if kind is Kind.UNPACK:
        value = unpack(value)
        if value is None:
            return
        kind = Kind.MAPPING if isinstance(value, dict) else Kind.SEQUENCE
    if kind is Kind.SEQUENCE:
        items: Any = enumerate(tuple.__iter__(value) if isinstance(value, tuple) else list.__iter__(value))
    else:
        items = dict.items(value if kind is Kind.MAPPING else object.__getattribute__(value, "__dict__"))
    for key, item in items:
        if looks[0] <= 0:
            return
        name = _text_of(key)
        yield from _walk(item, path if name.startswith("_") else (*path, name), above, looks)
