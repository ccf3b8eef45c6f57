"""What the tensors of a call look like, found wherever they are nested and interned as small numbers.

A run repeats the same few hundred lists of shapes many thousand times. So while it goes on a call only builds a
key (shapes, dtypes, devices and the nesting, as a tuple) and looks it up; names and texts are made once for each
new key. The key holds no tensor: tracing must not keep memory alive.
"""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from talkerviz.trace.log import NO_TENSORS
from talkerviz.trace.schema import TensorInfo, Tensors

Key = tuple[Any, ...] | None
Above = tuple[int, ...]
"""The identities of the containers around a value: it may be one of them."""

is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
_MAX_NESTING = 8
_MOST_PLACES = 8


class Signatures:
    """Numbers for lists of tensors: equal lists get equal numbers.

    Args:
        lists: where a new list is put, at the place that is its number; it holds the empty one already.
    """

    def __init__(self, lists: list[Tensors]) -> None:
        self._numbers: dict[Any, int] = {None: NO_TENSORS}
        self._lists = lists
        self._lock = threading.Lock()

    def of_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """The number of a call's arguments; positional ones are named by position, the others by keyword."""
        key = (_sequence_key(args, ()), _mapping_key(kwargs, ()) if kwargs else None)
        number = self._numbers.get(key)
        return self._new(key, (*_named(key[0], ""), *_named(key[1], ""))) if number is None else number

    def of_output(self, output: Any) -> int:
        """The number of what a call returned; a bare tensor is named `output`, others by where they are in it."""
        key = _key(output, ())
        number = self._numbers.get(key)
        return self._new(key, tuple(_named(key, "output"))) if number is None else number

    def _new(self, key: Any, tensors: Tensors) -> int:
        with self._lock:
            if key not in self._numbers:
                self._lists.append(tensors)
                self._numbers[key] = len(self._lists) - 1
            return self._numbers[key]


def _key(value: Any, above: Above) -> Key:
    kind = type(value)
    walk = _WALKS.get(kind)
    if walk is None:
        walk = _WALKS[kind] = _walk_for(kind)
    return walk(value, above)


def _tensor_key(value: torch.Tensor, above: Above) -> Key:
    try:
        shape = value.shape
    except (RuntimeError, ValueError):
        # A nested tensor's rows differ; a lazy module's parameter has no shape at all as yet.
        return (() if is_lazy(value) else (-1,) * value.dim(), value.dtype, value.device)
    if not all(type(size) is int for size in shape):  # while a model is exported a size may be a symbol
        return (tuple(size if type(size) is int else -1 for size in shape), value.dtype, value.device)
    return (shape, value.dtype, value.device)


def _sequence_key(value: Any, above: Above) -> Key:
    if len(above) > _MAX_NESTING or id(value) in above:
        return None
    inner = (*above, id(value))
    return ("", *[_key(item, inner) for item in value])


def _mapping_key(value: Mapping[Any, Any], above: Above) -> Key:
    if len(above) > _MAX_NESTING or id(value) in above:
        return None
    inner = (*above, id(value))
    found = [(str(name), key) for name, item in value.items() if (key := _key(item, inner)) is not None]
    return ("named", *found) if found else None


def _dataclass_key(value: Any, above: Above) -> Key:
    return _mapping_key({name: getattr(value, name, None) for name in value.__dataclass_fields__}, above)


def _attributes_key(value: Any, above: Above) -> Key:
    return _mapping_key(getattr(value, "__dict__", {}), above)


def _nothing_key(value: Any, above: Above) -> Key:
    return None


def _walk_for(kind: type) -> Callable[[Any, Above], Key]:
    if issubclass(kind, torch.Tensor):
        return _tensor_key
    if issubclass(kind, Mapping):
        return _mapping_key
    if issubclass(kind, tuple | list) and kind not in (torch.Size,):
        return _sequence_key
    if dataclasses.is_dataclass(kind):
        return _dataclass_key
    # Key-value caches are plain objects; other objects (configs, modules) hold no tensors of the call.
    if "cache" in kind.__name__.lower() or "cache" in kind.__module__.lower():
        return _attributes_key
    return _nothing_key


class Kind(enum.IntEnum):
    """Where `_tap.c` finds the tensors of a value by itself; it has the same numbers."""

    NOTHING = 0
    TENSOR = 1
    SEQUENCE = 2
    MAPPING = 3
    ATTRIBUTES = 4
    ASK_PYTHON = 5


def kind_of(kind: type) -> Kind:
    """The `Kind` of a type's values."""
    walk = _walk_for(kind)
    if walk is _mapping_key:
        return Kind.MAPPING if issubclass(kind, dict) else Kind.ASK_PYTHON
    if walk in (_dataclass_key, _attributes_key):
        return Kind.ATTRIBUTES if kind.__dictoffset__ else Kind.ASK_PYTHON
    plain: dict[Any, Kind] = {_nothing_key: Kind.NOTHING, _tensor_key: Kind.TENSOR, _sequence_key: Kind.SEQUENCE}
    return plain[walk]


_WALKS: dict[type, Callable[[Any, Above], Key]] = {}
_KINDS: dict[type, Kind] = {}


def tensors_in(value: Any, above: Above = ()) -> Iterator[torch.Tensor]:
    """The tensors themselves, found where the key of a value has theirs."""
    kind = _KINDS.get(type(value))
    if kind is None:
        kind = _KINDS[type(value)] = kind_of(type(value))
    if kind is Kind.TENSOR:
        yield value
    elif kind is not Kind.NOTHING and len(above) <= _MAX_NESTING and id(value) not in above:
        if kind is Kind.SEQUENCE:
            items = value
        elif isinstance(value, Mapping):
            items = value.values()
        elif dataclasses.is_dataclass(value):
            items = [getattr(value, name, None) for name in value.__dataclass_fields__]
        else:
            items = getattr(value, "__dict__", {}).values()
        for item in items:
            yield from tensors_in(item, (*above, id(value)))


def named_tensors_in(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors themselves with the names of their places; of many, such as a cache's, with the one name alone."""
    tensors = [*tensors_in(value)]
    places = [found.name for found in _named(_key(value, ()), name)]
    yield from zip(places if len(tensors) <= _MOST_PLACES else [name] * len(tensors), tensors, strict=True)


def _named(key: Key, name: str) -> Iterator[TensorInfo]:
    """The tensors of a key, in order, with the names of their places."""
    if key is None:
        return
    if key[0] == "named":
        for inner, inside in key[1:]:
            yield from _named(inside, f"{name}.{inner}" if name and name != "output" else inner)
    elif key[0] == "":
        for position, inside in enumerate(key[1:]):
            yield from _named(inside, f"{name}.{position}" if name and name != "output" else str(position))
    else:
        shape, dtype, device = key
        yield TensorInfo(name, tuple(shape), str(dtype).removeprefix("torch."), str(device))
