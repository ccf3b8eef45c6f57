"""Operations between modules that only feed each other are drawn as one: a rotation is not five boxes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def join_operations(light: np.ndarray, container: np.ndarray, edges: Iterable[tuple[int, int, bool]]) -> np.ndarray:
    """For each of some places, the one that it is drawn with: itself, or a later one that alone reads what it makes.

    What lies between the two would have to read the first, so joining them closes no circle.

    Args:
        light: which places may be joined.
        container: in which repeat each stands; only places in the same one are joined.
        edges: of two places, and whether both are of the same turn of a repeat.
    """
    readers: dict[int, set[tuple[int, bool]]] = {}
    for source, target, same_turn in edges:
        readers.setdefault(source, set()).add((target, same_turn))
    drawn_with = np.arange(len(light))

    def joined(place: int) -> int:
        while drawn_with[place] != place:
            place = int(drawn_with[place])
        return place

    # Again and again: what two read may be joined once these two are.
    changed = True
    while changed:
        changed = False
        for place, read_by in readers.items():
            if not light[place] or drawn_with[place] != place:
                continue
            own = {(joined(reader), same_turn) for reader, same_turn in read_by}
            own.discard((place, True))
            if len(own) != 1:
                continue
            reader, same_turn = own.pop()
            if same_turn and light[reader] and container[reader] == container[place] and reader != place:
                drawn_with[place] = reader
                # Whoever reads a part of what is drawn as one reads all of it.
                readers.setdefault(reader, set())
                changed = True
    return np.array([joined(place) for place in range(len(light))], dtype=np.int64)
