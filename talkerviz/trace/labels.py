"""Short texts about calls: counts with a noun, layer patterns, tensor shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from talkerviz.trace.schema import Tensors

_PATH_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def format_count(number: int, noun: str) -> str:
    """Format a count with its noun: `1 call`, `1,234 calls`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def layer_pattern(path: str) -> str:
    """Replace the numbers in a module path: `talker.model.layers.3.mlp` -> `talker.model.layers.*.mlp`."""
    return _PATH_NUMBER.sub(".*", path)


def layer_patterns(classes: Mapping[str, str]) -> dict[str, str]:
    """Name the modules that are alike: `layers.0.mlp` and `layers.1.mlp` are both `layers.*.mlp`.

    The numbers of a list of layers are replaced. Those in a module that is called itself, such as a `Sequential`, are
    kept if its numbered modules have different classes.

    Args:
        classes: path of each called module -> its class.

    Returns:
        Path -> pattern.
    """
    numbered: dict[str, set[str]] = {}
    for path, kind in classes.items():
        parent, _, name = path.rpartition(".")
        if name.isdecimal():
            numbered.setdefault(parent, set()).add(kind)
    patterns = {"": ""}

    def pattern(path: str) -> str:
        if path not in patterns:
            parent, _, name = path.rpartition(".")
            kept = not name.isdecimal() or not parent or (parent in classes and len(numbered.get(parent, ())) > 1)
            patterns[path] = f"{pattern(parent)}.{name if kept else '*'}".removeprefix(".")
        return patterns[path]

    return {path: pattern(path) for path in classes}


def shapes_text(inputs: Tensors, outputs: Tensors, more: bool = False) -> str:
    """Format the shapes of the first input and the first output: `1x20x1024 → 1x20x2048`.

    Args:
        inputs: the call's input tensors.
        outputs: the call's output tensors.
        more: append the number of further tensors, `1x20x1024 +2 → 1x20x2048`.

    Returns:
        The text; empty for a call without tensors.
    """
    if not inputs and not outputs:
        return ""
    return f"{_first_shape(inputs, more)} → {_first_shape(outputs, more)}".strip()


def _first_shape(tensors: Tensors, more: bool) -> str:
    first = tensors[0].shape_text if tensors else ""
    if not more:
        return first
    others = sum(tensor.copies for tensor in tensors) - 1
    return f"{first} +{others:,}" if others > 0 else first


def call_shapes(calls: pd.DataFrame, more: bool = False) -> np.ndarray:
    """Return `shapes_text` for each row of a calls table, as an object array."""
    pair, first = distinct_pairs(calls["inputs"], calls["outputs"])
    pairs = zip(calls["inputs"].to_numpy()[first], calls["outputs"].to_numpy()[first], strict=True)
    texts = np.array([shapes_text(inputs, outputs, more) for inputs, outputs in pairs], dtype=object)
    row_texts: np.ndarray = texts[pair]
    return row_texts


def distinct_pairs(inputs: pd.Series, outputs: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Assign numbers to pairs of tensor lists by identity; a trace shares its lists between calls.

    Returns:
        The pair number of each row, and the first row of each pair, in the order of the pair numbers.
    """
    columns = (inputs.to_numpy(), outputs.to_numpy())
    codes = [pd.factorize(np.fromiter(map(id, column), np.int64, len(column)))[0] for column in columns]
    both = codes[0] * (int(codes[1].max(initial=0)) + 1) + codes[1]
    pair, unique = pd.factorize(both)
    first = np.empty(len(unique), dtype=np.int64)
    first[pair[::-1]] = np.arange(len(pair) - 1, -1, -1)
    return pair, first


def first_and_others(texts: Sequence[str]) -> str:
    """Format the first of several different texts and the number of others: `1x4 → 1x9 (+2)`; empty for none."""
    return with_others(texts[0], len(texts) - 1) if texts else ""


def with_others(text: str, others: int) -> str:
    """Append the number of other texts: `1x4 → 1x9 (+2)`."""
    return f"{text} (+{others})" if others else text
