"""How many floating-point operations one torch operator does.

Matrix products and convolutions are counted by torch's own registry (`torch.utils.flop_counter`), a multiplication
with its addition as two; attention by its two products over the queries' heads. Element-wise operators count one for
every element they give, reductions one for every element they read, whatever it costs the hardware; moving, comparing
and choosing numbers counts nothing. An operator that is in none of these lists is unknown, not free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# Operations an element of the input, counted off the formula: mean, variance, scaling and the affine part, and so on.
_AN_ELEMENT_READ: dict[str, int] = {
    **dict.fromkeys(("sum", "mean", "prod", "amax", "amin", "max", "min", "cumsum", "cumprod"), 1),
    **dict.fromkeys(("linalg_vector_norm", "norm"), 2),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), 3),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "logsumexp"), 5),
    **dict.fromkeys(("_fused_rms_norm", "rms_norm"), 4),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit"), 7),
    **dict.fromkeys(("avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices"), 1),
}

# Operations an element of the output: between 2 neighbours in each dimension, or 4 for cubic.
_AN_ELEMENT_MADE: dict[str, int] = {
    "upsample_linear1d": 3,
    "upsample_bilinear2d": 3 * 3,
    "upsample_trilinear3d": 7 * 3,
    "upsample_bicubic2d": 5 * 7,
}

# Operators that give or change floating-point numbers without arithmetic. Those that give none need no list.
_ONLY_MOVES = {
    *("_reshape_alias", "_reshape_copy", "_to_copy", "_unsafe_view", "alias_copy", "as_strided_copy", "cat", "clone"),
    *("constant_pad_nd", "contiguous", "copy", "copy_", "detach", "embedding", "empty", "empty_like", "empty_strided"),
    *("expand_copy", "eye", "fill", "fill_", "flip", "full", "full_like", "gather", "index", "index_copy"),
    *("index_copy_", "index_fill", "index_fill_", "index_put", "index_put_", "index_select", "lift", "lift_fresh"),
    *("lift_fresh_copy", "masked_fill", "masked_fill_", "masked_scatter", "masked_select", "new_empty"),
    *("new_empty_strided", "new_full", "new_ones", "new_zeros", "normal", "normal_", "ones", "ones_like", "rand"),
    *("rand_like", "randn", "randn_like", "repeat", "repeat_interleave", "resize_", "roll", "scalar_tensor"),
    *("scatter", "scatter_", "select_scatter", "set_", "slice_scatter", "sort", "split_with_sizes_copy", "stack"),
    *("topk", "tril", "triu", "unbind_copy", "uniform_", "where", "zero_", "zeros", "zeros_like", "histc"),
    *(f"{kind}{n}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
}

# Views whose schemas do not say so.
_UNSAFE_VIEWS = ("unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes")

COLLECTIVE = ("c10d", "_c10d_functional")
"""Namespaces of operators that move numbers between processes; what a reduction adds up is not counted."""


def flops_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int | None:
    """Floating-point operations of one call of an `OpOverload`; None where that is not known."""
    packet = func._overloadpacket
    name = packet.__name__
    if name.startswith("_scaled_dot_product") and not name.endswith("backward"):
        query, key, value = args[:3]
        return int(2 * prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    if packet in flop_registry:
        count: Callable[..., int] = flop_registry[packet]
        return int(count(*args, **kwargs, out_val=out))
    if name in RULES:
        return int(RULES[name](*args, **kwargs))
    if is_view(func) or name in _ONLY_MOVES or func.namespace in COLLECTIVE or not _floats(out):
        return 0
    if name in _AN_ELEMENT_READ:
        return _AN_ELEMENT_READ[name] * _floats(args[0])
    if name in _AN_ELEMENT_MADE:
        return _AN_ELEMENT_MADE[name] * _floats(out)
    if torch.Tag.pointwise in func.tags:
        return _floats(out)
    return None


def is_view(func: Any) -> bool:
    """Whether an operator only looks at its input in another way, and moves no byte."""
    if torch.Tag.inplace_view in func.tags or func._overloadpacket.__name__ in _UNSAFE_VIEWS:
        return True
    returned = [result.alias_info for result in func._schema.returns]
    return bool(returned) and all(alias is not None and not alias.is_write for alias in returned)


def _floats(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() if value.dtype.is_floating_point or value.dtype.is_complex else 0
    return sum(map(_floats, value)) if isinstance(value, tuple | list) else 0


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
