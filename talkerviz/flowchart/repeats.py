"""Detection of repeats in sequences of keys: consecutive equal keys, and keys that alternate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_MIN_TURNS = 3  # fewer alternations, such as a-b-a-b, read more easily as single boxes
_MIN_EQUAL_OPERATIONS = 8  # consecutive operations of one name; fewer stay apart, as two `add`s of two residuals do


class Place(NamedTuple):
    """Position of a key among the items.

    Attributes:
        item: number of the item.
        member: index of the key in a repeat; -1 in an item that is no repeat.
    """

    item: int
    member: int


class Items:
    """Items that sequences of keys fold to. Sequences share items: the n-th occurrence of a key is one item.

    Attributes:
        order: item numbers, in an order that fits all sequences.
        repeats: for each item number, whether the item is a repeat.
    """

    def __init__(self) -> None:
        self.order: list[int] = []
        self.repeats: list[bool] = []
        self._known: dict[object, int] = {}

    def add(self, keys: Sequence[int], operation: Sequence[bool]) -> list[tuple[Place, int]]:
        """Fold a sequence.

        Args:
            keys: keys of the sequence.
            operation: mask of the keys that fold only with many in a row.

        Returns:
            The place of each key, and its turn in a repeat.
        """
        folded = _turns(_runs(keys, operation), keys)
        times: Counter[tuple[int, ...]] = Counter()
        wanted = []
        for names, _ in folded:
            times[names] += 1
            wanted.append((names, times[names]))
        self._make(wanted)
        folded_runs: list[tuple[Place, int]] = []
        for key, (names, turns) in zip(wanted, folded, strict=True):
            item = self._known[key]
            for turn, runs in enumerate(turns):
                for member, (begin, end) in enumerate(runs):
                    folded_runs += [(Place(item, member if len(names) > 1 else -1), turn)] * (end - begin)
        return folded_runs

    def _make(self, wanted: Sequence[tuple[tuple[int, ...], int]]) -> None:
        """Create missing items; each is put before the item that follows it in its sequence."""
        place = len(self.order)
        new: list[int] = []  # reversed; inserted together, since each insertion moves the rest of the list
        for key in reversed(wanted):
            known = self._known.get(key)
            if known is not None:
                self.order[place:place] = reversed(new)
                new.clear()
                place = self.order.index(known)
            else:
                self._known[key] = len(self.repeats)
                new.append(len(self.repeats))
                self.repeats.append(len(key[0]) > 1)
        self.order[place:place] = reversed(new)


_Run = tuple[int, int]
"""Range [begin, end) of equal keys."""


def _runs(keys: Sequence[int], operation: Sequence[bool]) -> list[_Run]:
    runs: list[_Run] = []
    begin = 0
    for place in range(1, len(keys) + 1):
        if place < len(keys) and keys[place] == keys[begin]:
            continue
        if operation[begin] and place - begin < _MIN_EQUAL_OPERATIONS:
            runs += [(single, single + 1) for single in range(begin, place)]
        else:
            runs.append((begin, place))
        begin = place
    return runs


def _turns(runs: list[_Run], keys: Sequence[int]) -> list[tuple[tuple[int, ...], list[list[_Run]]]]:
    """Group runs to alternations: the keys that alternate, usually a single one, and the runs of each turn."""
    names = [keys[begin] for begin, _ in runs]
    next_place: dict[int, int] = {}
    period_at = [1] * len(names)
    for place in range(len(names) - 1, -1, -1):
        period_at[place] = next_place.get(names[place], place + 1) - place
        next_place[names[place]] = place
    folded_runs = []
    place = 0
    while place < len(names):
        period, turns = period_at[place], 1
        turn_names = names[place : place + period]
        while period > 1 and names[place + turns * period : place + (turns + 1) * period] == turn_names:
            turns += 1
        if turns < _MIN_TURNS:
            period, turns = 1, 1
        members = [runs[place + turn * period : place + (turn + 1) * period] for turn in range(turns)]
        folded_runs.append((tuple(names[place : place + period]), members))
        place += period * turns
    return folded_runs
