"""Fold sequences of keys: what follows itself is a run, what comes in turns is a repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_FEWEST_TURNS = 3  # what takes turns less often is drawn one by one
_FEWEST_OPERATIONS = 8  # in a row, of one name, to be a run


class Place(NamedTuple):
    """Where one key of a sequence goes.

    Attributes:
        item: the number of the item.
        member: of an item that is a repeat, which of those that take turns; else -1.
    """

    item: int
    member: int


class Items:
    """What sequences fold to. Sequences share items: the same key, for the same time, is the same item.

    Attributes:
        order: the items' numbers as they follow each other, whatever sequences they are in.
        repeats: of each item, by number, whether it is a repeat.
    """

    def __init__(self) -> None:
        self.order: list[int] = []
        self.repeats: list[bool] = []
        self._known: dict[object, int] = {}

    def add(self, keys: Sequence[int], operation: Sequence[bool]) -> list[tuple[Place, int]]:
        """Fold one more sequence; `operation` says which keys fold only where there are many in a row.

        Returns the place of each key, and in which turn of a repeat it stands.
        """
        folded = _turns(_runs(keys, operation), keys)
        times: Counter[tuple[int, ...]] = Counter()
        wanted = []
        for names, _ in folded:
            times[names] += 1
            wanted.append((names, times[names]))
        self._make(wanted)
        found: list[tuple[Place, int]] = []
        for key, (names, turns) in zip(wanted, folded, strict=True):
            item = self._known[key]
            for turn, runs in enumerate(turns):
                for member, (begin, end) in enumerate(runs):
                    found += [(Place(item, member if len(names) > 1 else -1), turn)] * (end - begin)
        return found

    def _make(self, wanted: Sequence[tuple[tuple[int, ...], int]]) -> None:
        """Make the items that there are not yet; each stands before that which follows it in its sequence."""
        place = len(self.order)
        made: list[int] = []  # the last one first; put in together, since each time all that follows is moved
        for key in reversed(wanted):
            known = self._known.get(key)
            if known is not None:
                self.order[place:place] = reversed(made)
                made.clear()
                place = self.order.index(known)
            else:
                self._known[key] = len(self.repeats)
                made.append(len(self.repeats))
                self.repeats.append(len(key[0]) > 1)
        self.order[place:place] = reversed(made)


_Run = tuple[int, int]
"""Where it begins, and before where it ends."""


def _runs(keys: Sequence[int], operation: Sequence[bool]) -> list[_Run]:
    runs: list[_Run] = []
    begin = 0
    for place in range(1, len(keys) + 1):
        if place < len(keys) and keys[place] == keys[begin]:
            continue
        if operation[begin] and place - begin < _FEWEST_OPERATIONS:
            runs += [(one, one + 1) for one in range(begin, place)]
        else:
            runs.append((begin, place))
        begin = place
    return runs


def _turns(runs: list[_Run], keys: Sequence[int]) -> list[tuple[tuple[int, ...], list[list[_Run]]]]:
    """Runs -> the keys of what takes turns, mostly one, and the runs of each turn."""
    names = [keys[begin] for begin, _ in runs]
    next_place: dict[int, int] = {}
    period_at = [1] * len(names)
    for place in range(len(names) - 1, -1, -1):
        period_at[place] = next_place.get(names[place], place + 1) - place
        next_place[names[place]] = place
    found = []
    place = 0
    while place < len(names):
        period, turns = period_at[place], 1
        one = names[place : place + period]
        while period > 1 and names[place + turns * period : place + (turns + 1) * period] == one:
            turns += 1
        if turns < _FEWEST_TURNS:
            period, turns = 1, 1
        members = [runs[place + turn * period : place + (turn + 1) * period] for turn in range(turns)]
        found.append((tuple(names[place : place + period]), members))
        place += period * turns
    return found
