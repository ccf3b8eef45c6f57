"""Operations between modules that only feed each other are drawn as one: a rotation is not five boxes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def fuse_ops(
    operation: np.ndarray,
    light: np.ndarray,
    fed_from_outside: np.ndarray,
    container: np.ndarray,
    edges: Iterable[tuple[int, int, bool]],
) -> np.ndarray:
    """For each of some places, the one that it is drawn with: itself, or a later one that alone reads what it makes.

    Light operations, such as `add`, are joined whatever else the later one reads; a heavy one and those before or after
    it only in a chain, so that what attention is made of stays to be seen. What lies between two that are joined would
    have to read the first, so joining them closes no circle.

    Args:
        operation: which places are operations that may be joined.
        light: which of those are light.
        fed_from_outside: which places read what comes from outside as well.
        container: in which repeat each stands; only places in the same one are joined.
        edges: of two places, and whether both are of the same turn of a repeat.
    """
    readers: dict[int, set[tuple[int, bool]]] = {}
    sources: dict[int, set[int]] = {}
    for source, target, same_turn in edges:
        readers.setdefault(source, set()).add((target, same_turn))
        sources.setdefault(target, set()).add(source)
    drawn_with = np.arange(len(light))
    heavy = operation & ~light
    from_outside = fed_from_outside.copy()

    def joined(place: int) -> int:
        while drawn_with[place] != place:
            place = int(drawn_with[place])
        return place

    # Again and again: what two read may be joined once these two are.
    changed = True
    while changed:
        changed = False
        for place in sorted(readers):
            if not operation[place] or drawn_with[place] != place:
                continue
            read_by = {(joined(reader), same_turn) for reader, same_turn in readers[place]} - {(place, True)}
            if len(read_by) != 1:
                continue
            reader, same_turn = read_by.pop()
            if reader == place or not same_turn or not operation[reader] or container[reader] != container[place]:
                continue
            chain = not from_outside[reader] and {joined(source) for source in sources[reader]} <= {place, reader}
            if heavy[place] + heavy[reader] > (1 if chain else 0):
                continue
            drawn_with[place] = reader
            heavy[reader] |= heavy[place]
            from_outside[reader] |= from_outside[place]
            # The reader is a part of the two; what the other parts read is read by both.
            sources[reader] |= sources.get(place, set())
            changed = True
    return np.array([joined(place) for place in range(len(light))], dtype=np.int64)
