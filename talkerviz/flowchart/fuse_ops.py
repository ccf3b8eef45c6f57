"""Fusion of operations that only feed each other into one box: a rotary embedding is not five boxes."""

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
    """Map each node to the node that it is fused into: itself, or its only reader.

    Light operations, such as `add`, are fused whatever else the reader reads. A heavy one is fused only with its
    neighbours in a chain, so that the steps of attention stay visible. A node between two fused ones would have to read
    the first, which has a single reader, so fusion makes no cycle.

    Args:
        operation: mask of the nodes that may be fused.
        light: mask of the light operations among them.
        fed_from_outside: mask of the nodes that also read tensors from outside.
        container: number of each node's repeat; only nodes in the same repeat are fused.
        edges: source, target, and whether both are in the same turn of a repeat.

    Returns:
        The number of the node that each node is drawn with.
    """
    readers: dict[int, set[tuple[int, bool]]] = {}
    sources: dict[int, set[int]] = {}
    for source, target, same_turn in edges:
        readers.setdefault(source, set()).add((target, same_turn))
        sources.setdefault(target, set()).add(source)
    fused_into = np.arange(len(light))
    heavy = operation & ~light
    from_outside = fed_from_outside.copy()

    def root(node: int) -> int:
        while fused_into[node] != node:
            node = int(fused_into[node])
        return node

    # To a fixed point: two readers of a node may become one by fusion.
    changed = True
    while changed:
        changed = False
        for node in sorted(readers):
            if not operation[node] or fused_into[node] != node:
                continue
            read_by = {(root(reader), same_turn) for reader, same_turn in readers[node]} - {(node, True)}
            if len(read_by) != 1:
                continue
            reader, same_turn = read_by.pop()
            if reader == node or not same_turn or not operation[reader] or container[reader] != container[node]:
                continue
            chain = not from_outside[reader] and {root(source) for source in sources[reader]} <= {node, reader}
            if heavy[node] + heavy[reader] > (1 if chain else 0):
                continue
            fused_into[node] = reader
            heavy[reader] |= heavy[node]
            from_outside[reader] |= from_outside[node]
            # The fused node reads what either part reads.
            sources[reader] |= sources.get(node, set())
            changed = True
    return np.array([root(node) for node in range(len(light))], dtype=np.int64)
