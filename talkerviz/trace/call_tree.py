"""Call nesting: parents, outermost calls, and calls hidden inside compiled or fused regions."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd


def parent_rows(calls: pd.DataFrame) -> np.ndarray:
    """Return the row of each call's parent; -1 for a parent that is not in the table."""
    rows: np.ndarray = pd.Index(calls["call"]).get_indexer(calls["parent"].fillna(-1).astype("int64"))
    return rows


def outermost(calls: pd.DataFrame, kinds: np.ndarray) -> np.ndarray:
    """Mark the calls that have no ancestor of their own kind; their times add up to the time of the kind.

    Args:
        calls: a calls table, or a selection of one.
        kinds: an integer for each call.

    Returns:
        A boolean array, one value a call.
    """
    parent = parent_rows(calls)
    outer = np.ones(len(calls), dtype=bool)
    ancestor = parent
    while (ancestor >= 0).any():
        outer &= (ancestor < 0) | (kinds[ancestor] != kinds)
        ancestor = np.where(ancestor >= 0, parent[ancestor], -1)
    return outer


def visible_calls(opaque: pd.DataFrame, eager: pd.DataFrame, regions: Collection[str]) -> np.ndarray:
    """Mark the calls of an eager run that have a counterpart in a run with compiled or fused modules.

    A compiled or fused module is one call in the first run. Where operators are watched the same module runs eagerly,
    and its children are calls as well. Part of a region may have run eagerly in the first run too, as the talker's does
    during the prefill: so a call inside a region is hidden only if the first run has no such call in the same parent.

    Args:
        opaque: the calls of the run with opaque regions, in the order in which they began.
        eager: the calls of the eager run of the same program.
        regions: paths of modules that may be a single call in `opaque`.

    Returns:
        A boolean array, one value a call of `eager`.
    """
    visible = np.ones(len(eager), dtype=bool)
    if not regions:
        return visible
    inside = _inside_regions(eager, regions)
    numbers, parents = opaque["call"].tolist(), opaque["parent"].fillna(-1).tolist()
    paths = opaque["path"].tolist()
    counterpart = {-1: -1}  # eager call -> opaque call; a hidden call has its parent's counterpart
    next_row = 0  # of `opaque`
    columns = (eager["call"], eager["parent"].fillna(-1), eager["path"])
    for row, (call, parent, path, hidden) in enumerate(
        zip(*(column.tolist() for column in columns), inside.tolist(), strict=True)
    ):
        expected_parent = counterpart.get(parent, -1)
        has_next = next_row < len(opaque)
        if hidden and not (has_next and paths[next_row] == path and parents[next_row] == expected_parent):
            visible[row] = False
            counterpart[call] = expected_parent
        else:
            counterpart[call] = numbers[next_row] if has_next else -1
            next_row += 1
    return visible


def _inside_regions(calls: pd.DataFrame, regions: Collection[str]) -> np.ndarray:
    """Mark the calls of modules below a region, and all calls made by a region, whatever their path."""
    categories = [str(path) for path in calls["path"].cat.categories]
    below = [any(path.startswith(f"{region}.") for region in regions) for path in categories]
    region = [is_below or path in regions for is_below, path in zip(below, categories, strict=True)]
    codes = calls["path"].cat.codes.to_numpy()
    inside: np.ndarray = np.array(below, dtype=bool)[codes]
    opens_region = np.array(region, dtype=bool)[codes]
    parent = parent_rows(calls)
    for row in np.flatnonzero(parent >= 0).tolist():
        inside[row] |= opens_region[parent[row]]
        opens_region[row] |= inside[row]
    return inside
