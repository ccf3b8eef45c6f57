"""What the tensors of a call look like, found wherever they are nested, and numbered: equal lists, equal numbers.

Containers are looked through without running any code of theirs: tuples, lists and dicts as they are stored, other
objects by their attributes. So one that is lazy, endless, or raises when it is read is left alone. How much is looked
at for one call is bounded. `native/describe.c` does the same in C, and writes the same rows; what is here serves where
that could not be built, and says what it has to ask Python.
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
MERGED_ITEMS, MAX_ENTRIES, MAX_LOOKS, MAX_NESTING = 8, 256, 1024, 8
_MOST_PLACES = 8
_PLAIN = (type(None), int, float, str, bool)


class Kind(enum.IntEnum):
    """How a type's values are looked through; `describe.h` has the same numbers."""

    NOTHING = 0
    TENSOR = 1
    SEQUENCE = 2
    MAPPING = 3
    OBJECT = 4
    CACHE = 5
    UNPACK = 6


def kind_of(kind: type) -> Kind:
    """The `Kind` of a type's values."""
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
    # Caches are told by their names: of what they hold, a layer reads its own part.
    if has_dict and ("cache" in kind.__name__.lower() or "cache" in kind.__module__.lower()):
        return Kind.CACHE
    if _slots(kind):
        return Kind.UNPACK
    return Kind.OBJECT if has_dict else Kind.NOTHING


def _slots(kind: type) -> dict[str, MemberDescriptorType]:
    found: dict[str, MemberDescriptorType] = {}
    for owner in reversed(kind.__mro__):
        if "__slots__" in vars(owner):
            found |= {name: value for name, value in vars(owner).items() if isinstance(value, MemberDescriptorType)}
    return found


def unpack(value: Any) -> dict[Any, Any] | list[Any] | None:
    """What is in a value of kind `UNPACK`, read without its own code."""
    kind = type(value)
    if issubclass(kind, deque):
        count, half = deque.__len__(value), MAX_ITEMS // 2
        places = range(count) if count <= MAX_ITEMS else (*range(half), *range(count - half, count))
        return [deque.__getitem__(value, place) for place in places]
    attributes: dict[str, Any] = object.__getattribute__(value, "__dict__") if kind.__dictoffset__ else {}
    if issubclass(kind, UserDict | UserList):
        inside = attributes.get("data")
        return inside if type(inside) in (dict, list) else None
    found = dict(attributes)
    for name, slot in _slots(kind).items():
        try:
            found[name] = slot.__get__(value)
        except AttributeError:  # not set
            continue
    return found


class TensorKinds:
    """Numbers for pairs of dtype and device.

    Args:
        kinds: where a new pair is put, at the place that is its number.
    """

    def __init__(self, kinds: list[TensorKind]) -> None:
        self._kinds = kinds
        self._numbers: dict[tuple[torch.dtype, torch.device], int] = {}

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor's dtype and device."""
        with torch._C.DisableTorchFunctionSubclass():
            pair = tensor.dtype, tensor.device
        if pair not in self._numbers:
            self._kinds.append((str(pair[0]).removeprefix("torch."), str(pair[1])))
            self._numbers[pair] = len(self._kinds) - 1
        return self._numbers[pair]

    def row(self, tensor: Tensor) -> tuple[int, ...] | None:
        """The number of a tensor's dtype and device, and its sizes, -1 for one that is no number; None if not told."""
        if is_tracing():  # to read a shape would become an operator of what is made
            return None
        return (self.number(tensor), *_sizes(tensor))


_shape_of: Callable[[Tensor], Sequence[Any]] = Tensor.shape.__get__  # type: ignore[attr-defined]


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    # Past what a subclass says of itself: that may be code of any kind.
    with torch._C.DisableTorchFunctionSubclass():
        if is_lazy(tensor):
            return ()  # a lazy module's parameter has no shape as yet
        try:
            return tuple(size if type(size) is int else -1 for size in _shape_of(tensor))
        except (RuntimeError, ValueError):
            return (-1,) * Tensor.dim(tensor)  # a nested tensor's rows differ


class Signatures:
    """Numbers for lists of tensors, in Python.

    Args:
        lists: where a new list is put, at the place that is its number; it holds the empty one already.
    """

    def __init__(self, lists: list[Tensors]) -> None:
        self._lists = lists
        self._names: dict[str, int] = {}
        self._kinds: list[TensorKind] = []
        self._describer = Describer(self._names, TensorKinds(self._kinds))
        self._numbers: dict[Tensors, int] = {(): 0}
        self._known = [0]

    def of_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """The number of a call's arguments; positional ones are named by position, the others by keyword."""
        return self._number(self._describer.of_inputs(args, kwargs))

    def of_output(self, output: Any) -> int:
        """The number of what a call returned; a bare tensor is named `output`, others by where they are in it."""
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
    """Writes rows, and gives equal rows equal numbers: what `describe.c` does, in Python.

    Args:
        names: name -> its number; new ones are added.
        kinds: dtypes and devices.
    """

    def __init__(self, names: dict[str, int], kinds: TensorKinds) -> None:
        self._names, self._tensor_kinds = names, kinds
        self._kinds: dict[type, Kind] = {}
        self._rows: dict[tuple[int, ...], int] = {}
        self._next = 1
        self._fresh = array("q")

    def of_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], layer: int = NO_LAYER) -> int:
        """The number of a call's arguments; 0 without tensors. In a layer's call caches are that layer's alone."""
        looking = _Looking(self, layer)
        items = looking.items(args, NO_LAYER) or [0, END]
        entries = looking.entries(kwargs, False, False)
        return self._number([INPUTS, *items, *entries] if entries or len(items) > 2 else [])

    def of_output(self, output: Any, layer: int = NO_LAYER) -> int:
        """The number of what a call returned."""
        value = _Looking(self, layer).value(output, False)
        return self._number([OUTPUT, *value] if value else [])

    def take(self) -> bytes:
        """New rows since the last time, as `describe.c` gives them."""
        taken, self._fresh = self._fresh, array("q")
        return taken.tobytes()

    def kind(self, of: type) -> Kind:
        """The kind of a type, asked once."""
        kind = self._kinds.get(of)
        if kind is None:
            kind = self._kinds[of] = kind_of(of)
        return kind

    def name(self, key: Any) -> int:
        """The number of an entry's name."""
        text = _text_of(key)
        return self._names.setdefault(text, len(self._names))

    def tensor(self, tensor: Tensor) -> list[int]:
        """A tensor's part of a row."""
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


class _Looking:
    """One look at a call's values; see describe.c for its bounds."""

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
        except Exception:  # a value that cannot be looked at is not described
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
                found = self.items(value, only)
                return [SEQUENCE, *found] if found else []
            if kind is Kind.MAPPING:
                found = self.entries(value, False, of_cache)
            else:
                attributes = object.__getattribute__(value, "__dict__")
                found = self.entries(attributes, kind is Kind.CACHE and self._layer >= 0, False)
            return [MAPPING, *found] if found else []
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
            place = bit if bit < half or count <= most else count - most + bit
            inside = self.value(get(values, place), False)
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
        found: list[int] = []
        for looked, (key, value) in enumerate(items):
            if looked >= MAX_ENTRIES or self._looks <= 0:
                break
            inside = self.value(value, of_cache)
            if inside:
                found += [1 + self._describer.name(key), *inside]
        return [*found, END] if found else []


def _text_of(key: Any) -> str:
    """The name of an entry; that of a key whose text would be the user's code is `?`."""
    if type(key) is str:
        return key
    plain = type(key) in _PLAIN or (type(key) is tuple and len(key) <= MAX_LISTED and {*map(type, key)} <= {*_PLAIN})
    return str(key) if plain else "?"


_KINDS: dict[type, Kind] = {}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors themselves, found where the description of a value has theirs."""
    for _, tensor in _walk(value, (), (), [MAX_LOOKS]):
        yield tensor


def named_tensors_in(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors themselves with the names of their places; of many, such as a cache's, with the one name alone."""
    found = [*_walk(value, (), (), [MAX_LOOKS])]
    for place, tensor in found:
        yield ".".join((name, *place)) if len(found) <= _MOST_PLACES else name, tensor


def _walk(
    value: Any, place: tuple[str, ...], above: tuple[int, ...], looks: list[int]
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Tensors with their places; `looks` holds how many values may still be looked at."""
    looks[0] -= 1
    kind = _KINDS.get(type(value))
    if kind is None:
        kind = _KINDS[type(value)] = kind_of(type(value))
    if kind is Kind.TENSOR:
        yield place, value
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
        yield from _walk(item, place if name.startswith("_") else (*place, name), above, looks)
