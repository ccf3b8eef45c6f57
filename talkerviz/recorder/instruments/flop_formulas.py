"""FLOP formulas: floating-point operations of one torch operator.

Matrix products and convolutions are counted by torch's own registry (`torch.utils.flop_counter`), a multiplication
with its addition as two; attention by its two products over the queries' heads. Element-wise operators count one for
every element of the result, reductions one for every element read, whatever it costs the hardware; moving, comparing
and selecting numbers counts nothing. An operator that is in none of these lists is unknown, not free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# Operations an element of the input, counted from the formula: mean, variance, scaling and the affine part, and so on.
_OPS_PER_INPUT: dict[str, int] = {
    **dict.fromkeys(("sum", "mean", "prod", "amax", "amin", "max", "min", "cumsum", "cumprod"), 1),
    **dict.fromkeys(("linalg_vector_norm", "norm"), 2),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), 3),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "logsumexp"), 5),
    **dict.fromkeys(("_fused_rms_norm", "rms_norm"), 4),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit"), 7),
    **dict.fromkeys(("avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices"), 1),
}

# Operations an element of the output: interpolation between 2 neighbours in each dimension, or 4 for cubic.
_OPS_PER_OUTPUT: dict[str, int] = {
    "upsample_linear1d": 3,
    "upsample_bilinear2d": 3 * 3,
    "upsample_trilinear3d": 7 * 3,
    "upsample_bicubic2d": 5 * 7,
}

# Operators that return or change floating-point numbers without arithmetic. Operators that return none need no list.
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

# Views that their schemas do not declare as such.
_UNSAFE_VIEWS = ("unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes")

COLLECTIVE = ("c10d", "_c10d_functional")
"""Namespaces of operators that move numbers between processes; the additions of a reduction are not counted."""


def flops_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int | None:
    """Return the floating-point operations of one call of an `OpOverload`; None if unknown."""
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
    if name in _OPS_PER_INPUT:
        return _OPS_PER_INPUT[name] * _floats(args[0])
    if name in _OPS_PER_OUTPUT:
        return _OPS_PER_OUTPUT[name] * _floats(out)
    if torch.Tag.pointwise in func.tags:
        return _floats(out)
    return None


def is_view(func: Any) -> bool:
    """Return whether an operator only returns a view of its input, and moves no byte."""
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
    """Count a grouped product: with two stacks a product a pair of matrices; else groups divide a dimension of one."""
    return 2 * prod(a.shape[-2:]) * b.shape[-1] * (len(a) if a.dim() == b.dim() == 3 else 1)


# Operations a unit of a recurrent layer beside its products, by torch's mode number: ReLU, tanh, LSTM, GRU.
_OPS_PER_UNIT = (2, 2, 13, 10)


def _lstm_layer(x: Tensor, input_weight: Tensor, hidden_weight: Tensor, *_: Any, **__: Any) -> int:
    """Count oneDNN's LSTM: one direction of one layer."""
    products = 2 * (input_weight.numel() + hidden_weight.numel())
    return x.shape[:-1].numel() * (products + _OPS_PER_UNIT[2] * hidden_weight.shape[-1])


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
    """Count cuDNN's recurrent layers: all directions of all layers, each with `stride` weights."""
    products = sum(weight.numel() for weight in weights if weight.dim() == 2)
    return x.shape[:-1].numel() * (2 * products + len(weights) // stride * _OPS_PER_UNIT[mode] * size)


def _cell(mode: int) -> Callable[..., int]:
    """Return the formula of a fused recurrent cell, whose products are operators of their own."""

    def count(input_gates: Tensor, hidden_gates: Tensor, state: Tensor, *biases: Tensor | None) -> int:
        return _OPS_PER_UNIT[mode] * state.numel() + sum(bias is not None for bias in biases) * input_gates.numel()

    return count


def _trilinear(
    i1: Tensor,
    i2: Tensor,
    i3: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    summed: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """Count as torch computes it: the product of two, summed over axes that the third lacks, times the third."""
    pairs = ((i1, expand1), (i2, expand2), (i3, expand3))
    shapes = [_with_ones(tensor, expanded) for tensor, expanded in pairs]
    first = [max(sizes) for sizes in zip(*shapes[:2], strict=True)]
    left = [1 if axis in summed and axis in expand3 else size for axis, size in enumerate(first)]
    return int(2 * prod(first) + 2 * prod(max(sizes) for sizes in zip(left, shapes[2], strict=True)))


def _with_ones(tensor: Tensor, axes: Sequence[int]) -> list[int]:
    sizes = iter(tensor.shape)
    return [1 if axis in axes else next(sizes) for axis in range(tensor.dim() + len(axes))]


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
    """Count an embedding bag: sum, mean or maximum of the rows read, optionally weighted."""
    return indices.numel() * weight.shape[-1] * (1 if weights is None else 2)


def _int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> int:
    """Count a product of x [rows, in] with an int8 weight [out, in] as any other; its scales are not counted."""
    return 2 * len(x) * weight.numel()


RULES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(GROUPED, _grouped_product),
    **dict.fromkeys(EMBEDDING_BAGS, _embedding_bag),
    "mkldnn_rnn_layer": _lstm_layer,
    "_cudnn_rnn": _recurrent_layers,
    "_thnn_fused_lstm_cell": _cell(2),
    "_thnn_fused_gru_cell": _cell(3),
    "_trilinear": _trilinear,
    "_weight_int8pack_mm": _int8_product,
}
