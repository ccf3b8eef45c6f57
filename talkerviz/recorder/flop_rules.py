"""Floating-point operations of operators that have a rule of their own: functions of what such an operator is given.

They count as `flops.py` says: products with their additions two, what is done to each element off the formula, and
biases only where they are not a product's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

GROUPED = ("_grouped_mm", "grouped_mm_fallback")
"""Products of groups of rows or columns with a matrix each; the latter is transformers'."""
EMBEDDING_BAGS = ("_embedding_bag", "_embedding_bag_forward_only")


def _grouped_product(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Only of two stacks each matrix meets another; else groups divide a dimension, which makes no more products."""
    return 2 * prod(a.shape[-2:]) * b.shape[-1] * (len(a) if a.dim() == b.dim() == 3 else 1)


# What a recurrent layer does for each of its units beside its products, by torch's numbers: ReLU, tanh, LSTM, GRU.
_A_UNIT = (2, 2, 13, 10)


def _lstm_layer(x: Tensor, of_input: Tensor, of_hidden: Tensor, *_: Any, **__: Any) -> int:
    """oneDNN's, one direction of one layer."""
    return x.shape[:-1].numel() * (2 * (of_input.numel() + of_hidden.numel()) + _A_UNIT[2] * of_hidden.shape[-1])


def _recurrent_layers(
    x: Tensor,
    weights: Sequence[Tensor],
    stride: int,
    buffer: Tensor | None,
    hidden: Tensor,
    cell: Tensor | None,
    mode: int,
    size: int,
    *_: Any,
    **__: Any,
) -> int:
    """cuDNN's, all directions of all layers, of which each has `stride` weights."""
    products = sum(weight.numel() for weight in weights if weight.dim() == 2)
    return x.shape[:-1].numel() * (2 * products + len(weights) // stride * _A_UNIT[mode] * size)


def _cell(mode: int) -> Callable[..., int]:
    """What is left of a cell when its products are made."""

    def count(of_input: Tensor, of_hidden: Tensor, state: Tensor, *biases: Tensor | None) -> int:
        return _A_UNIT[mode] * state.numel() + sum(bias is not None for bias in biases) * of_input.numel()

    return count


def _trilinear(
    one: Tensor,
    two: Tensor,
    three: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    summed: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """As torch takes it: the product of the first two, summed where the third has nothing, and then with the third."""
    pairs = ((one, expand1), (two, expand2), (three, expand3))
    shapes = [_with_ones(tensor, expanded) for tensor, expanded in pairs]
    first = [max(sizes) for sizes in zip(*shapes[:2], strict=True)]
    left = [1 if place in summed and place in expand3 else size for place, size in enumerate(first)]
    return int(2 * prod(first) + 2 * prod(max(sizes) for sizes in zip(left, shapes[2], strict=True)))


def _with_ones(tensor: Tensor, places: Sequence[int]) -> list[int]:
    sizes = iter(tensor.shape)
    return [1 if place in places else next(sizes) for place in range(tensor.dim() + len(places))]


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> int:
    """A sum, mean or maximum of the rows that it reads, which may be weighed."""
    return indices.numel() * weight.shape[-1] * (1 if weights is None else 2)


RULES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(GROUPED, _grouped_product),
    **dict.fromkeys(EMBEDDING_BAGS, _embedding_bag),
    "mkldnn_rnn_layer": _lstm_layer,
    "_cudnn_rnn": _recurrent_layers,
    "_thnn_fused_lstm_cell": _cell(2),
    "_thnn_fused_gru_cell": _cell(3),
    "_trilinear": _trilinear,
}
