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

from talkerviz.recorder.flop_rules import RULES

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
