"""Which columns of a table there is room for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

BETWEEN = 3
"""Characters between two columns."""


def fitting_columns(
    widths: Mapping[str, int], unneeded: Sequence[str], width: int, kind: Callable[[str], str] = str
) -> list[str]:
    """The columns that fit into `width` characters: while they do not, those of the next kind in `unneeded` go."""
    names = list(widths)
    for one in unneeded:
        if sum(widths[name] + BETWEEN for name in names) > width:
            names = [name for name in names if kind(name) != one]
    return names
