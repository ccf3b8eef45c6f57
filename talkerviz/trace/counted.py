"""A number of things, in words."""

from __future__ import annotations


def counted(number: int, name: str) -> str:
    """`1 call`, `1,234 calls`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"
