"""Modules that differ by a number alone, such as a layer's, as one place."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def without_numbers(path: str) -> str:
    """`talker.model.layers.3.mlp` as `talker.model.layers.*.mlp`."""
    return _NUMBER.sub(".*", path)
