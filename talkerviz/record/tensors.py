"""What the tensors of a call look like, found wherever they are nested and interned as small numbers.

A run repeats the same few hundred lists of shapes many thousand times. So while it goes on a call only builds a
key (shapes, dtypes, devices and the nesting, as a tuple) and looks it up; names and texts are made once for each
new key. The key holds no tensor: tracing must not keep memory alive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from talkerviz.trace.schema import TensorInfo

Key = tuple[Any, ...] | None
NO_TENSORS = 0  # the number of the empty list
_MAX_NESTING = 8  # guards against structures that contain themselves


class Signatures:
    """Numbers for lists of tensors: equal lists get equal numbers."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {None: NO_TENSORS}
        self.lists: list[tuple[TensorInfo, ...]] = [()]

    def of_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """The number of a call's arguments; positional ones are named by position, the others by keyword."""
        key = (_sequence_key(args, 0), _mapping_key(kwargs, 0) if kwargs else None)
        number = self._numbers.get(key)
        return self._new(key, (*_named(key[0], ""), *_named(key[1], ""))) if number is None else number

    def of_output(self, output: Any) -> int:
        """The number of what a call returned; a bare tensor is named `output`, others by where they are in it."""
        key = _key(output, 0)
        number = self._numbers.get(key)
        return self._new(key, tuple(_named(key, "output"))) if number is None else number

    def _new(self, key: Any, tensors: tuple[TensorInfo, ...]) -> int:
        # Two threads may both miss; setdefault keeps the first number, the second list is never named by one.
        self.lists.append(tensors)
        return self._numbers.setdefault(key, len(self.lists) - 1)


def _key(value: Any, level: int) -> Key:
    kind = type(value)
    walk = _WALKS.get(kind)
    if walk is None:
        walk = _WALKS[kind] = _walk_for(kind)
    return walk(value, level)


def _tensor_key(value: torch.Tensor, level: int) -> Key:
    return (value.shape, value.dtype, value.device)


def _sequence_key(value: Any, level: int) -> Key:
    if level > _MAX_NESTING:
        return None
    return ("", *[_key(item, level + 1) for item in value])


def _mapping_key(value: Mapping[Any, Any], level: int) -> Key:
    if level > _MAX_NESTING:
        return None
    found = [(str(name), key) for name, item in value.items() if (key := _key(item, level + 1)) is not None]
    return ("named", *found) if found else None


def _dataclass_key(value: Any, level: int) -> Key:
    return _mapping_key({name: getattr(value, name, None) for name in value.__dataclass_fields__}, level)


def _attributes_key(value: Any, level: int) -> Key:
    return _mapping_key(vars(value), level)


def _nothing_key(value: Any, level: int) -> Key:
    return None


def _walk_for(kind: type) -> Callable[[Any, int], Key]:
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


_WALKS: dict[type, Callable[[Any, int], Key]] = {}


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
