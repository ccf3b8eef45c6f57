"""A number of things, in words."""

from __future__ import annotations

import re


def counted(number: int, name: str) -> str:
    """`1 call`, `1,234 calls`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def without_numbers(path: str) -> str:
    """`talker.model.layers.3.mlp` as `talker.model.layers.*.mlp`."""
    return _NUMBER.sub(".*", path)
