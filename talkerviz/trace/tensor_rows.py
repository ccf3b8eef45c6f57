"""Descriptions of calls' tensors as rows of whole numbers, read after the run.

While a run goes on a call's tensors are a row of numbers: their shapes, and how they are nested (recorder/native/
describe.h, and recorder/tensor_signatures.py, which write them). Equal rows have one number. `TensorLists` makes
`TensorInfo` of a row when it is first looked at: a run of a million calls has thousands of rows, most of which nobody asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from talkerviz.trace.schema import TensorInfo, Tensors

END, TENSOR, SEQUENCE, MAPPING, INPUTS, OUTPUT = range(6)
MAX_ITEMS, MAX_LISTED = 32, 8
"""Of a longer sequence the first and the last half of so many are looked at; of a list of tensors the second."""

OWN_LAYER = "*"
"""The place in a cache of the layer that a call is in: `cache.layers.*.keys`. So layers' calls are alike."""

Row = Sequence[int]
TensorKind = tuple[str, str]
"""A dtype and a device, as torch writes them."""


class TensorLists:
    """The lists of tensors of a log, by number; number 0 is the empty list.

    Args:
        names: the names that rows refer to.
        kinds: the dtypes and devices that they refer to.
    """

    def __init__(self, names: Sequence[str] = (), kinds: Sequence[TensorKind] = ()) -> None:
        self._names, self._kinds = names, kinds
        self._rows: dict[int, np.ndarray] = {}
        self._known: dict[int, Tensors] = {0: ()}

    def add(self, data: bytes) -> None:
        """Add rows as a tap gives them: number, length and tokens of each, int64."""
        numbers = np.frombuffer(data, dtype=np.int64)
        at = 0
        while at < len(numbers):
            number, length = int(numbers[at]), int(numbers[at + 1])
            if not 0 < length <= len(numbers) - at - 2:
                raise ValueError("descriptions of tensors are cut short")
            self._rows[number] = numbers[at + 2 : at + 2 + length]
            at += 2 + length

    def __getitem__(self, number: int) -> Tensors:
        """The list of a number; empty for one that is not there."""
        known = self._known.get(number)
        if known is None:
            row = self._rows.get(number)
            known = self._known[number] = () if row is None else read_row(row.tolist(), self._names, self._kinds)
        return known

    def objects(self, numbers: np.ndarray) -> np.ndarray:
        """The lists of many numbers, equal numbers sharing one, as an array of objects."""
        different, places = np.unique(numbers, return_inverse=True)
        lists = np.empty(len(different), dtype=object)
        for place, number in enumerate(different.tolist()):
            lists[place] = self[number]
        of_numbers: np.ndarray = lists[places]
        return of_numbers

    def made(self) -> list[Tensors]:
        """The lists that were made."""
        return list(self._known.values())

    def forget(self) -> None:
        """Drop the lists that were made; rows stay."""
        self._known = {0: ()}


def read_row(row: Row, names: Sequence[str], kinds: Sequence[TensorKind]) -> Tensors:
    """Make the list of tensors that a row describes.

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

    def value(self, place: tuple[str, ...], count: int) -> Iterator[TensorInfo]:
        what = self._next()
        if what == TENSOR:
            dtype, device = self._kinds[self._next()]
            shape = tuple(self._next() for _ in range(self._next()))
            yield TensorInfo(_name(place), shape, dtype, device, count)
        elif what == SEQUENCE:
            yield from self._items(place, count)
        elif what == MAPPING:
            yield from self._entries(place, count)
        else:
            raise ValueError("a damaged description of tensors")

    def _items(self, place: tuple[str, ...], count: int) -> Iterator[TensorInfo]:
        length = self._next()
        while (mask := self._next()) != END:
            places = _places(mask, length) if length >= 0 else [0]
            yield from self.value((*place, _ranges(places) if length >= 0 else OWN_LAYER), count * len(places))

    def _entries(self, place: tuple[str, ...], count: int) -> Iterator[TensorInfo]:
        while (name := self._next()) != END:
            yield from self.value((*place, self._names[name - 1]), count)


def _name(place: tuple[str, ...]) -> str:
    if not place:
        return "output"
    # What is private to a container is no part of where its users find a tensor.
    name = ".".join([*(part for part in place[:-1] if not part.startswith("_")), place[-1]])
    # A name of a file may be no text that a file can hold.
    return name.encode("utf-8", "backslashreplace").decode()


def _places(mask: int, said: int) -> list[int]:
    looked = [bit for bit in range(MAX_ITEMS) if mask >> bit & 1]
    if said == 0:
        return looked
    length, most = said >> 1, MAX_LISTED if said & 1 else MAX_ITEMS
    half = most // 2
    places = [bit if bit < half else length - most + bit for bit in looked]
    # Between ends that are alike the rest, which nobody looked at, is taken to be.
    if half - 1 in looked and half in looked:
        places[looked.index(half) : looked.index(half)] = range(half, length - half)
    return places


def _ranges(places: Sequence[int]) -> str:
    """`0-3,7` for the places 0, 1, 2, 3 and 7."""
    ranges: list[list[int]] = []
    for place in places:
        if ranges and ranges[-1][1] == place - 1:
            ranges[-1][1] = place
        else:
            ranges.append([place, place])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
