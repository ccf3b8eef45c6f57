"""Decoder of tensor lists that the recorder encodes as rows of integers.

During a run the tensors of a call are encoded as a row of integers, shapes and nesting, by recorder/native/describe.h
and recorder/tensor_signatures.py. Equal rows share a number. `TensorLists` decodes a row on first access: a run of a
million calls has thousands of rows, most of which are never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from talkerviz.trace.schema import TensorInfo, Tensors

END, TENSOR, SEQUENCE, MAPPING, INPUTS, OUTPUT = range(6)
MAX_ITEMS, MAX_LISTED = 32, 8
"""Most items of a sequence that are encoded, half from each end; `MAX_LISTED` for a list of tensors."""

OWN_LAYER = "*"
"""Index of the call's own layer in a cache, `cache.layers.*.keys`, so that calls of different layers are equal."""

Row = Sequence[int]
TensorKind = tuple[str, str]
"""Dtype and device, by torch's names."""


class TensorLists:
    """Tensor lists of a log, by number; number 0 is the empty list.

    Args:
        names: names that rows refer to.
        kinds: dtypes and devices that rows refer to.
    """

    def __init__(self, names: Sequence[str] = (), kinds: Sequence[TensorKind] = ()) -> None:
        self._names, self._kinds = names, kinds
        self._rows: dict[int, np.ndarray] = {}
        self._known: dict[int, Tensors] = {0: ()}

    def add(self, data: bytes) -> None:
        """Add encoded rows: number, length and tokens of each, as int64."""
        numbers = np.frombuffer(data, dtype=np.int64)
        position = 0
        while position < len(numbers):
            number, length = int(numbers[position]), int(numbers[position + 1])
            if not 0 < length <= len(numbers) - position - 2:
                raise ValueError("descriptions of tensors are cut short")
            self._rows[number] = numbers[position + 2 : position + 2 + length]
            position += 2 + length

    def __getitem__(self, number: int) -> Tensors:
        """Return the list of a number; empty for an unknown number."""
        known = self._known.get(number)
        if known is None:
            row = self._rows.get(number)
            known = self._known[number] = () if row is None else read_row(row.tolist(), self._names, self._kinds)
        return known

    def objects(self, numbers: np.ndarray) -> np.ndarray:
        """Return the lists of many numbers, as an object array; equal numbers share a list."""
        unique, inverse = np.unique(numbers, return_inverse=True)
        lists = np.empty(len(unique), dtype=object)
        for index, number in enumerate(unique.tolist()):
            lists[index] = self[number]
        by_row: np.ndarray = lists[inverse]
        return by_row

    def decoded(self) -> list[Tensors]:
        """Return the lists decoded so far."""
        return list(self._known.values())

    def forget(self) -> None:
        """Drop decoded lists; the rows stay."""
        self._known = {0: ()}


def read_row(row: Row, names: Sequence[str], kinds: Sequence[TensorKind]) -> Tensors:
    """Decode a row.

    Raises:
        ValueError: the row is damaged.
    """
    reader = _Reader(row, names, kinds)
    try:
        return tuple(reader.inputs() if row[0] == INPUTS else reader.value((), 1))
    except IndexError as error:
        raise ValueError("a description of tensors that is cut short") from error


class _Reader:
    def __init__(self, row: Row, names: Sequence[str], kinds: Sequence[TensorKind]) -> None:
        self._row, self._names, self._kinds = row, names, kinds
        self._at = 1

    def _next(self) -> int:
        self._at += 1
        return self._row[self._at - 1]

    def inputs(self) -> Iterator[TensorInfo]:
        yield from self._items((), 1)
        if self._at < len(self._row):
            yield from self._entries((), 1)

    def value(self, path: tuple[str, ...], count: int) -> Iterator[TensorInfo]:
        token = self._next()
        if token == TENSOR:
            dtype, device = self._kinds[self._next()]
            shape = tuple(self._next() for _ in range(self._next()))
            yield TensorInfo(_name(path), shape, dtype, device, count)
        elif token == SEQUENCE:
            yield from self._items(path, count)
        elif token == MAPPING:
            yield from self._entries(path, count)
        else:
            raise ValueError("a damaged description of tensors")

    def _items(self, path: tuple[str, ...], count: int) -> Iterator[TensorInfo]:
        length = self._next()
        while (mask := self._next()) != END:
            indices = _indices(mask, length) if length >= 0 else [0]
            yield from self.value((*path, _ranges(indices) if length >= 0 else OWN_LAYER), count * len(indices))

    def _entries(self, path: tuple[str, ...], count: int) -> Iterator[TensorInfo]:
        while (name := self._next()) != END:
            yield from self.value((*path, self._names[name - 1]), count)


def _name(path: tuple[str, ...]) -> str:
    if not path:
        return "output"
    # Private attributes of a container are no part of the path by which users reach a tensor.
    name = ".".join([*(part for part in path[:-1] if not part.startswith("_")), path[-1]])
    # A dict key may hold lone surrogates, which UTF-8 cannot encode.
    return name.encode("utf-8", "backslashreplace").decode()


def _indices(mask: int, length_token: int) -> list[int]:
    """Return the indices of a sequence that share one description.

    Args:
        mask: a bit for each encoded item.
        length_token: twice the length, plus 1 for a list of tensors; 0 for a sequence that was encoded whole.
    """
    encoded = [bit for bit in range(MAX_ITEMS) if mask >> bit & 1]
    if length_token == 0:
        return encoded
    length, limit = length_token >> 1, MAX_LISTED if length_token & 1 else MAX_ITEMS
    half = limit // 2
    indices = [bit if bit < half else length - limit + bit for bit in encoded]
    # If both sides of the gap are equal, the items in the gap, which were not encoded, are assumed equal as well.
    if half - 1 in encoded and half in encoded:
        indices[encoded.index(half) : encoded.index(half)] = range(half, length - half)
    return indices


def _ranges(indices: Sequence[int]) -> str:
    """Format ascending indices as ranges: `0-3,7`."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
