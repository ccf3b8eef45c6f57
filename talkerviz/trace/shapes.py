"""Calls' shapes in short texts."""

from __future__ import annotations

from collections.abc import Sequence

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
    return f"{first} +{len(tensors) - 1:,}" if more and len(tensors) > 1 else first


def shapes_of_calls(calls: pd.DataFrame, more: bool = False) -> list[str]:
    """`shapes_text` of each row of a trace's calls."""
    # A trace shares the few tuples it has between its calls, so their identity finds the text fast.
    texts: dict[tuple[int, int], str] = {}
    found = []
    for inputs, outputs in zip(calls["inputs"], calls["outputs"], strict=True):
        pair = (id(inputs), id(outputs))
        text = texts.get(pair)
        if text is None:
            text = texts[pair] = shapes_text(inputs, outputs, more)
        found.append(text)
    return found


def and_others(texts: Sequence[str]) -> str:
    """The first of several different texts and how many others there are, `1x4 → 1x9 (+2)`; empty for none."""
    return with_others(texts[0], len(texts) - 1) if texts else ""


def with_others(text: str, others: int) -> str:
    """A text and how many other ones there are."""
    return f"{text} (+{others})" if others else text
