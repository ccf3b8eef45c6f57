"""Calls' shapes in short texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from talkerviz.trace.schema import Tensors


def shapes_text(inputs: Tensors, outputs: Tensors, more: bool = False) -> str:
    """The first tensor in and the first out as `1x20x1024 → 1x20x2048`; empty where a call has neither.

    With `more` it is said how many further ones there are, `1x20x1024 +2 → 1x20x2048`.
    """
    if not inputs and not outputs:
        return ""
    return f"{_first(inputs, more)} → {_first(outputs, more)}".strip()


def _first(tensors: Tensors, more: bool) -> str:
    first = tensors[0].shape_text if tensors else ""
    others = sum(tensor.copies for tensor in tensors) - 1
    return f"{first} +{others:,}" if more and others > 0 else first


def shapes_of_calls(calls: pd.DataFrame, more: bool = False) -> np.ndarray:
    """`shapes_text` of each row of a trace's calls, an array of objects."""
    which, first = distinct_pairs(calls["inputs"], calls["outputs"])
    pairs = zip(calls["inputs"].to_numpy()[first], calls["outputs"].to_numpy()[first], strict=True)
    texts = np.array([shapes_text(inputs, outputs, more) for inputs, outputs in pairs], dtype=object)
    found: np.ndarray = texts[which]
    return found


def distinct_pairs(inputs: pd.Series, outputs: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Number the pairs of tensor lists by identity, which a trace's calls share.

    Returns:
        The number of each row's pair, and the first row of each pair, in the order of their numbers.
    """
    columns = (inputs.to_numpy(), outputs.to_numpy())
    codes = [pd.factorize(np.fromiter(map(id, column), np.int64, len(column)))[0] for column in columns]
    both = codes[0] * (int(codes[1].max(initial=0)) + 1) + codes[1]
    which, pairs = pd.factorize(both)
    first = np.empty(len(pairs), dtype=np.int64)
    first[which[::-1]] = np.arange(len(which) - 1, -1, -1)
    return which, first


def and_others(texts: Sequence[str]) -> str:
    """The first of several different texts and how many others there are, `1x4 → 1x9 (+2)`; empty for none."""
    return with_others(texts[0], len(texts) - 1) if texts else ""


def with_others(text: str, others: int) -> str:
    """A text and how many other ones there are."""
    return f"{text} (+{others})" if others else text
