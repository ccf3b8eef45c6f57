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
        position = len(self.order)
        new: list[int] = []  # reversed; inserted together, since each insertion moves the rest of the list
        for key in reversed(wanted):
            known = self._known.get(key)
            if known is not None:
                self.order[position:position] = reversed(new)
                new.clear()
                position = self.order.index(known)
            else:
                self._known[key] = len(self.repeats)
                new.append(len(self.repeats))
                self.repeats.append(len(key[0]) > 1)
        self.order[position:position] = reversed(new)


_Run = tuple[int, int]
"""Range [begin, end) of equal keys."""


def _runs(keys: Sequence[int], operation: Sequence[bool]) -> list[_Run]:
    runs: list[_Run] = []
    begin = 0
    for position in range(1, len(keys) + 1):
        if position < len(keys) and keys[position] == keys[begin]:
            continue
        if operation[begin] and position - begin < _MIN_EQUAL_OPERATIONS:
            runs += [(single, single + 1) for single in range(begin, position)]
        else:
            runs.append((begin, position))
        begin = position
    return runs


def _turns(runs: list[_Run], keys: Sequence[int]) -> list[tuple[tuple[int, ...], list[list[_Run]]]]:
    """Group runs to alternations: the keys that alternate, usually a single one, and the runs of each turn."""
    names = [keys[begin] for begin, _ in runs]
    next_position: dict[int, int] = {}
    period_at = [1] * len(names)
    for position in range(len(names) - 1, -1, -1):
        period_at[position] = next_position.get(names[position], position + 1) - position
        next_position[names[position]] = position
    grouped = []
    position = 0
    while position < len(names):
        period, turns = period_at[position], 1
        turn_names = names[position : position + period]
        while period > 1 and names[position + turns * period : position + (turns + 1) * period] == turn_names:
            turns += 1
        if turns < _MIN_TURNS:
            period, turns = 1, 1
        members = [runs[position + turn * period : position + (turn + 1) * period] for turn in range(turns)]
        grouped.append((tuple(names[position : position + period]), members))
        position += period * turns
    return grouped
