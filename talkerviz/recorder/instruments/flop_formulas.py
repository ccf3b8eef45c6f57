"""FLOP formulas: floating-point operations of one torch operator.

Matrix products and convolutions are counted by torch's own registry (`torch.utils.flop_counter`), a multiplication
with its addition as two; attention by its two products over the queries' heads. Element-wise operators count one for
every element of the result, reductions one for every element read, whatever it costs the hardware; moving, comparing,
selecting and drawing numbers counts nothing. Norms, losses and optimizers count the operations of their formula for
every element; factorisations of matrices the leading terms in Golub and Van Loan, "Matrix Computations"; a backward
formula without products twice its forward one. An operator that is in none of these lists is unknown, not free.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import log2, prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# Operations an element of the first argument, or of the gradient in a backward formula, counted from the formula: mean,
# variance, scaling and the affine part, and so on. In-place forms have the rule of the name without `_`.
_OPS_PER_INPUT: dict[str, int] = {
    **dict.fromkeys(("sum", "mean", "prod", "amax", "amin", "max", "min", "cumsum", "cumprod", "nansum"), 1),
    **dict.fromkeys(("linalg_vector_norm", "norm", "native_norm", "linalg__powsum"), 2),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean", "dist", "renorm"), 3),
    **dict.fromkeys(("logcumsumexp", "_logcumsumexp"), 3),  # exponential, sum, logarithm
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "_masked_softmax", "logsumexp", "softmax"), 5),
    **dict.fromkeys(("log_softmax", "_nested_tensor_softmax_with_shape", "_sparse_softmax", "_sparse_log_softmax"), 5),
    **dict.fromkeys(("_softmax_backward_data", "_masked_softmax_backward", "_sparse_softmax_backward_data"), 4),
    **dict.fromkeys(("_log_softmax_backward_data", "_sparse_log_softmax_backward_data"), 4),
    **dict.fromkeys(("_fused_rms_norm", "rms_norm", "_weight_norm_interface"), 4),
    **dict.fromkeys(("_fused_rms_norm_backward", "_weight_norm_interface_backward"), 8),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit"), 7),
    **dict.fromkeys(("_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training"), 7),
    **dict.fromkeys(("_batch_norm_with_update", "_batch_norm_with_update_functional", "_batch_norm_no_update"), 7),
    **dict.fromkeys(("cudnn_batch_norm", "miopen_batch_norm", "quantized_batch_norm"), 7),
    **dict.fromkeys(("native_layer_norm_backward", "native_group_norm_backward", "native_batch_norm_backward"), 14),
    **dict.fromkeys(("cudnn_batch_norm_backward", "miopen_batch_norm_backward", "batch_norm_backward"), 14),
    **dict.fromkeys(("batch_norm_stats", "batch_norm_update_stats"), 3),
    **dict.fromkeys(("batch_norm_gather_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt"), 4),
    **dict.fromkeys(("batch_norm_backward_reduce", "batch_norm_backward_elemt"), 7),
    **dict.fromkeys((f"{kind}_pool{n}d" for kind in ("avg", "adaptive_avg", "_adaptive_avg") for n in (1, 2, 3)), 1),
    **dict.fromkeys((f"{kind}_pool{n}d" for kind in ("adaptive_max", "fractional_max") for n in (2, 3)), 1),
    **dict.fromkeys((f"max_pool{n}d_with_indices" for n in (2, 3)), 1),
    **dict.fromkeys((f"{kind}_pool{n}d" for kind in ("mkldnn_max", "quantized_max") for n in (1, 2, 3)), 1),
    "mkldnn_adaptive_avg_pool2d": 1,
    **dict.fromkeys(
        (f"{kind}_pool{n}d_backward" for kind in ("avg", "_adaptive_avg", "adaptive_avg") for n in (2, 3)), 1
    ),
    **dict.fromkeys((f"{kind}_pool{n}d_backward" for kind in ("adaptive_max", "fractional_max") for n in (2, 3)), 1),
    **dict.fromkeys((f"{kind}_pool{n}d_backward" for kind in ("max", "mkldnn_max") for n in (2, 3)), 1),
    **dict.fromkeys((f"max_pool{n}d_with_indices_backward" for n in (2, 3)), 1),
    "mkldnn_adaptive_avg_pool2d_backward": 1,
    # Gradients of copies: those of one element are added up.
    **dict.fromkeys((f"{kind}_pad{n}d_backward" for kind in ("reflection", "replication") for n in (1, 2, 3)), 1),
    **dict.fromkeys((f"upsample_nearest{n}d_backward" for n in (1, 2, 3)), 1),
    **dict.fromkeys((f"_upsample_nearest_exact{n}d_backward" for n in (1, 2, 3)), 1),
    **dict.fromkeys(("embedding_dense_backward", "_embedding_bag_dense_backward", "unfold_backward", "col2im"), 1),
    **dict.fromkeys(
        ("_embedding_bag_backward", "_nested_sum_backward", "segment_reduce", "_segment_reduce_backward"), 1
    ),
    **dict.fromkeys(("_coalesce", "_sparse_sum", "_sparse_csr_sum", "_sparse_csr_prod", "_sparse_sum_backward"), 1),
    "_embedding_bag_per_sample_weights_backward": 2,
    "upsample_linear1d_backward": 3,
    **dict.fromkeys(("upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward"), 9),
    "upsample_trilinear3d_backward": 21,
    **dict.fromkeys(("upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward"), 35),
    "_upsample_lanczos2d_aa_backward": 55,
    **dict.fromkeys(("native_dropout", "_fused_dropout"), 2),
    **dict.fromkeys(("log_sigmoid_forward", "rrelu_with_noise", "rrelu_with_noise_functional"), 1),
    # Losses, with the sum over all elements.
    "mse_loss": 3,
    **dict.fromkeys(("smooth_l1_loss", "huber_loss", "multi_margin_loss", "multilabel_margin_loss_forward"), 4),
    "soft_margin_loss": 5,
    "binary_cross_entropy": 6,
    "binary_cross_entropy_with_logits": 7,
    **dict.fromkeys(("quantize_per_tensor", "quantize_per_channel", "quantize_per_tensor_dynamic"), 2),
}

# Operations an element of the output: interpolation between 2 neighbours in each dimension, 4 for cubic, 6 for Lanczos.
_OPS_PER_OUTPUT: dict[str, int] = {
    "upsample_linear1d": 3,
    **dict.fromkeys(("upsample_bilinear2d", "_upsample_bilinear2d_aa"), 3 * 3),
    "upsample_trilinear3d": 7 * 3,
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bicubic2d_aa"), 5 * 7),
    "_upsample_lanczos2d_aa": 5 * 11,
    # Element-wise, though not all of torch's versions tag them so.
    **dict.fromkeys(("hardswish", "glu", "glu_jvp", "_prelu_kernel", "polar", "floor_divide", "_masked_scale"), 1),
    **dict.fromkeys(("_add_relu", "_conj_physical", "_standard_gamma_grad", "_dirichlet_grad", "to_padded_tensor"), 1),
    **dict.fromkeys(("linalg_cross", "_compute_linear_combination"), 3),
    **dict.fromkeys(("bessel_i0", "bessel_i0e", "bessel_i1", "bessel_i1e", "bessel_j0", "bessel_j1", "cbrt"), 1),
    **dict.fromkeys(("erf_inv", "erfcx", "ndtri", "spherical_bessel_j0", "zeta", "rsqrt", "reciprocal"), 1),
    **dict.fromkeys(
        ("elu_backward", "glu_backward", "glu_backward_jvp", "hardshrink_backward", "softplus_backward"), 1
    ),
    **dict.fromkeys(("hardsigmoid_backward", "hardswish_backward", "hardtanh_backward", "leaky_relu_backward"), 1),
    **dict.fromkeys(("log_sigmoid_backward", "rrelu_with_noise_backward", "softshrink_backward"), 1),
    "_prelu_kernel_backward": 1,
    **dict.fromkeys(("nll_loss_backward", "nll_loss2d_backward"), 1),
    "mse_loss_backward": 3,
    **dict.fromkeys(("smooth_l1_loss_backward", "huber_loss_backward", "multi_margin_loss_backward"), 4),
    **dict.fromkeys(("multilabel_margin_loss_backward", "soft_margin_loss_backward"), 5),
    "binary_cross_entropy_backward": 6,
    "dequantize": 2,
    **dict.fromkeys((f"fake_quantize_per_{kind}_affine_cachemask" for kind in ("tensor", "channel")), 4),
    **dict.fromkeys((f"_fake_quantize_learnable_per_{kind}_affine" for kind in ("tensor", "channel")), 4),
    **dict.fromkeys((f"_fake_quantize_learnable_per_{kind}_affine_backward" for kind in ("tensor", "channel")), 8),
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": 4,
    **dict.fromkeys(("_fused_moving_avg_obs_fq_helper", "_fused_moving_avg_obs_fq_helper_functional"), 6),
}

# Operations a parameter of an optimizer's step: weight decay 2, Adam's moments 3 and 4, its quotient 4 and update 2.
_OPS_PER_PARAMETER = {"_fused_adam": 15, "_fused_adamw": 15, "_fused_sgd": 6, "_fused_adagrad": 8}

# Operators that return or change floating-point numbers without arithmetic. Operators that return none need no list.
_ONLY_MOVES = {
    *("_reshape_alias", "_reshape_copy", "_to_copy", "_unsafe_view", "alias_copy", "as_strided_copy", "cat", "clone"),
    *("constant_pad_nd", "contiguous", "copy", "detach", "embedding", "empty", "empty_like", "empty_strided"),
    *("expand_copy", "eye", "fill", "flip", "full", "full_like", "gather", "index", "index_copy", "index_fill"),
    *("index_select", "lift", "lift_fresh", "lift_fresh_copy", "masked_fill", "masked_scatter", "masked_select"),
    *("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "normal", "ones", "ones_like", "rand"),
    *("rand_like", "randn", "randn_like", "repeat", "repeat_interleave", "resize", "roll", "scalar_tensor"),
    *("select_scatter", "set", "slice_scatter", "sort", "split_with_sizes_copy", "stack", "_stack", "_chunk_cat"),
    *("topk", "tril", "triu", "unbind_copy", "uniform", "where", "zero", "zeros", "zeros_like", "histc", "histogram"),
    *(f"{kind}{n}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
    *("_copy_from", "_copy_from_and_resize", "_lazy_clone", "_pin_memory", "_resize_output", "_efficientzerotensor"),
    *("_cudnn_init_dropout_state", "_cudnn_rnn_flatten_weight", "_mkldnn_reshape", "_mkldnn_transpose"),
    *("_nested_from_padded", "_nested_from_padded_and_nested_example", "_nested_from_padded_tensor"),
    *("_nested_tensor_from_mask", "_nested_tensor_from_tensor_list", "_nested_select_backward"),
    *("_nested_get_jagged_dummy", "_jagged_to_padded_dense_forward", "_padded_dense_to_jagged_forward"),
    *("_new_zeros_with_same_feature_meta", "_pack_padded_sequence", "_philox_normal", "_philox_uniform"),
    *("_sample_dirichlet", "_standard_gamma", "_sparse_coo_tensor_with_dims", "sparse_compressed_tensor"),
    *("_sparse_coo_tensor_with_dims_and_tensors", "_sparse_compressed_tensor_with_dims", "sparse_coo_tensor"),
    *("_sparse_mask_projection", "sparse_mask", "_sparse_broadcast_to", "sparse_resize", "sparse_resize_and_clear"),
    *("_spdiags", "_to_dense", "_to_sparse", "_to_sparse_bsc", "_to_sparse_bsr", "_to_sparse_csc", "_to_sparse_csr"),
    *("_to_sparse_semi_structured", "to_mkldnn", "mkldnn_reorder_conv2d_weight", "mkldnn_reorder_conv3d_weight"),
    *("_coalesced", "copy_sparse_to_sparse", "resize_as", "resize_as_sparse", "_cslt_compress", "_indices", "_values"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unsafe_index"),
    *("_unsafe_masked_index", "arange", "linspace", "logspace", "range", "fft_fftfreq", "fft_rfftfreq", "from_file"),
    *(f"{kind}_window" for kind in ("bartlett", "blackman", "hamming", "hann", "kaiser")),
    *("bernoulli", "binomial", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal_functional"),
    *("poisson", "randint", "randint_like", "random", "randperm", "block_diag", "channel_shuffle", "complex"),
    *("diag_embed", "diagonal_backward", "diagonal_scatter", "empty_permuted", "im2col", "masked_scatter_backward"),
    *("max_unpool2d", "max_unpool3d", "aminmax", "_aminmax", "cummax", "cummin", "_cummax_helper", "_cummin_helper"),
    *("kthvalue", "median", "nanmedian", "mode", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
    *("rot90", "select_backward", "slice_backward", "take", "trace_backward", "tril_indices", "triu_indices"),
    *("lu_unpack", "q_per_channel_scales", "q_per_channel_zero_points", "_amp_update_scale", "_make_dep_token"),
    *("as_strided_scatter", "broadcast_in_dim", "collapse", "collapse_view", "convert_element_type", "copy_strided"),
    *("copy_to", "device_put", "iota", "rev", "reshape", "split_dim", "view_of", "view_of_dtype", "_uniform_helper"),
    *("maximum_value", "minimum_value", "_histogramdd_from_bin_cts", "_histogramdd_from_bin_tensors"),
    *("_histogramdd_bin_edges", "_dyn_quant_pack_4bit_weight", "nonzero_static"),
}

# Views that their schemas do not declare as such.
_UNSAFE_VIEWS = ("unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes")

COLLECTIVE = ("c10d", "_c10d_functional")
"""Namespaces of operators that move numbers between processes; the additions of a reduction are not counted."""


def flops_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int | None:
    """Return the floating-point operations of one call of an `OpOverload`; None if unknown."""
    packet = func._overloadpacket
    name: str = packet.__name__
    if name.startswith("_scaled_dot_product"):
        return _attention(*args[name.endswith("backward") :][:3], backward=name.endswith("backward"))
    if packet in flop_registry:
        count: Callable[..., int] = flop_registry[packet]
        return int(count(*args, **kwargs, out_val=out))
    if name.startswith("_foreach_"):
        return _foreach(name.removeprefix("_foreach_").removesuffix("_"), args)
    functional = name.removesuffix("_")
    if functional in _OPS_PER_PARAMETER:
        return _OPS_PER_PARAMETER[functional] * _floats(args[0])
    if functional in RULES:
        taken = {name: value for name, value in kwargs.items() if not name.startswith("out")}
        return int(RULES[functional](out, *args, **taken))
    if func.namespace == "quantized":
        return _quantized(name, args, out)
    if functional in _OPS_PER_INPUT:
        # Sums of floats into integers are bookkeeping, as transformers' offsets of the tokens of each expert.
        return 0 if isinstance(out, Tensor) and not _floats(out) else _OPS_PER_INPUT[functional] * _floats(args[0])
    if is_view(func) or functional in _ONLY_MOVES or func.namespace in COLLECTIVE or not _floats(out):
        return 0
    if torch.Tag.view_copy in func.tags:
        return 0
    if functional in _OPS_PER_OUTPUT:
        return _OPS_PER_OUTPUT[functional] * _floats(out)
    if _is_pointwise(name):
        return _floats(out)
    if torch.Tag.reduction in func.tags:
        return _floats(args[0])
    return None


@functools.cache
def _is_pointwise(name: str) -> bool:
    """Return whether any overload of an aten operator is tagged so: torch tags some and forgets others."""
    packets = [getattr(aten, name, None) for name in {name, name.removesuffix("_")}]
    return any(
        torch.Tag.pointwise in getattr(packet, overload).tags
        for packet in packets
        if packet is not None
        for overload in packet.overloads()
    )


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


def _foreach(name: str, args: Sequence[Any]) -> int | None:
    """Count an operator of lists as those of their tensors; the in-place forms return nothing."""
    if name == "mm":
        return sum(2 * int(a.numel() * b.shape[-1]) for a, b in zip(*args[:2], strict=True))
    if name in _ONLY_MOVES:
        return 0
    return _OPS_PER_INPUT.get(name, 1) * _floats(args[0])


def _quantized(name: str, args: Sequence[Any], out: Any) -> int | None:
    """Count a quantised layer by its products, and other operators on quantised tensors as element-wise ones."""
    x = args[0]
    if not isinstance(out, Tensor) or not isinstance(x, Tensor):
        return 0 if not isinstance(out, Tensor) else None
    if name.startswith("linear"):
        return 2 * x.numel() * out.shape[-1]
    if name.startswith("conv"):
        weight = args[1].weight()
        return 2 * (x if "transpose" in name else out).numel() * int(prod(weight.shape[1:]))
    return out.numel()


def _attention(query: Tensor, key: Tensor, value: Tensor, *, backward: bool = False) -> int:
    """Count the products of attention: scores and their sum of values; backward the scores again and four gradients."""
    width, value_width = query.shape[-1], value.shape[-1]
    products = 3 * width + 2 * value_width if backward else width + value_width
    return int(2 * prod(query.shape[:-1]) * key.shape[-2] * products)


def _product(position: int) -> Callable[..., int]:
    """Return the formula of a product whose argument at this position is summed over its last dimension."""

    def count(out: Tensor, *args: Any, **_: Any) -> int:
        return 2 * out.numel() * int(args[position].shape[-1])

    return count


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Count a convolution with weight [out channels, in channels of a group, ...]."""
    return 2 * out.numel() * prod(weight.shape[1:])


def _transposed_convolution(out: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Count a transposed convolution with weight [in channels, out channels of a group, ...]."""
    return 2 * x.numel() * prod(weight.shape[1:])


def _fourier(out: Tensor, x: Tensor, dim: Sequence[int], *_: Any, **__: Any) -> int:
    """Count a fast Fourier transform: 5 N log2 N for N complex numbers, half of it for real ones."""
    whole = out if out.numel() >= x.numel() and not out.is_complex() else x
    points = prod(whole.shape[axis] for axis in dim)
    each = 5.0 if x.is_complex() and out.is_complex() else 2.5
    return round(each * whole.numel() * log2(points)) if points > 1 else 0


# Operations an element sampled from a grid, by torch's mode number, in 2 and 3 dimensions: linear, nearest, cubic.
_OPS_PER_SAMPLE = {2: (9, 0, 35), 3: (21, 0, 0)}
_OPS_PER_COORDINATE = 3  # from -1 to 1 to an index


def _grid_sample(out: Tensor, x: Tensor, grid: Tensor, mode: int = 0, *_: Any, **__: Any) -> int:
    return _OPS_PER_SAMPLE[grid.shape[-1]][mode] * out.numel() + _OPS_PER_COORDINATE * grid.numel()


def _grid_sample_backward(_: Any, grad: Tensor, x: Tensor, grid: Tensor, mode: int = 0, *__: Any, **___: Any) -> int:
    return 2 * _grid_sample(grad, x, grid, mode)


def _index_add(out: Tensor, x: Tensor, dim: int, index: Tensor, source: Tensor, *_: Any, **__: Any) -> int:
    """Count one addition for each element added."""
    return _floats(source)


def _scatter_add(out: Tensor, x: Tensor, dim: int, index: Tensor, *_: Any, **__: Any) -> int:
    return index.numel() if _floats(x) else 0


def _scatter(out: Tensor, x: Tensor, dim: int, index: Tensor, *_: Any, reduce: str | None = None, **__: Any) -> int:
    return index.numel() if reduce and _floats(x) else 0


def _put(out: Tensor, x: Tensor, index: Any, values: Tensor, accumulate: bool = False, *_: Any, **__: Any) -> int:
    """Count one addition for each element that is added to one that was there."""
    if not accumulate or not _floats(x):
        return 0
    return index.numel() if isinstance(index, Tensor) else elements_put(x, index)


def _masked_put(out: Tensor, x: Tensor, mask: Tensor, indices: Any, values: Tensor) -> int:
    return elements_put(x, indices)


def elements_put(x: Tensor, indices: Sequence[Tensor | None]) -> int:
    """Return the number of elements that indices select; on the meta device a mask selects all."""
    shapes: list[tuple[int, ...]] = []
    axis, left = 0, list(x.shape)
    for index in indices:
        if index is None:
            axis += 1
            continue
        masked = index.dtype in (torch.bool, torch.uint8)
        axes = range(axis, axis + (index.dim() if masked else 1))
        axis = axes.stop
        if masked:
            shapes.append((index.numel() if index.is_meta else int(index.count_nonzero()),))
        else:
            shapes.append(tuple(index.shape))
        for each in axes:
            left[each] = 1
    return int(prod(torch.broadcast_shapes(*shapes)) * prod(left))  # type: ignore[no-untyped-call]


def _distances(out: Tensor, x: Tensor, *_: Any, **__: Any) -> int:
    """Count difference, power and sum for each element of each pair of rows."""
    return 3 * out.numel() * x.shape[-1]


def _distances_backward(_: Any, grad: Tensor, x: Tensor, *__: Any, **___: Any) -> int:
    return 6 * grad.numel() * x.shape[-1]


def _target_loss(out: Any, x: Tensor, target: Tensor, *_: Any, **__: Any) -> int:
    """Count the weight and the sum of each target's log probability."""
    return 2 * target.numel()


_OPS_PER_CTC_STATE = 9  # three exponentials, their sum and logarithm, and the maximum taken out before and added after


def _ctc_loss(out: Any, log_probs: Tensor, targets: Tensor, *_: Any, **__: Any) -> int:
    """Count the forward recursion over all steps and states, twice the labels and one."""
    steps, batch = (*log_probs.shape[:-1], 1)[:2]
    labels = targets.shape[-1] if targets.dim() == 2 else -(-targets.numel() // max(batch, 1))
    return int(_OPS_PER_CTC_STATE * steps * batch * (2 * labels + 1))


def _ctc_loss_backward(_: Any, grad: Tensor, log_probs: Tensor, targets: Tensor, *__: Any, **___: Any) -> int:
    return 2 * _ctc_loss(None, log_probs, targets)


def _matrices(x: Tensor) -> tuple[int, int, int]:
    """Return the number of matrices, and their rows and columns."""
    return prod(x.shape[:-2]), x.shape[-2], x.shape[-1]


def _cubic(factor: float) -> Callable[..., int]:
    """Return the formula of an operator on square matrices [..., n, n] that takes `factor` n^3."""

    def count(out: Any, x: Tensor, *_: Any, **__: Any) -> int:
        batch, rows, columns = _matrices(x)
        return round(factor * batch * rows * columns * min(rows, columns))

    return count


def _orthogonal(times: int) -> Callable[..., int]:
    """Return the formula of a QR factorisation, `times` 2 n^2 (m - n / 3): once for R, and again for Q."""

    def count(out: Any, x: Tensor, *_: Any, **__: Any) -> int:
        batch, rows, columns = _matrices(x)
        long, short = max(rows, columns), min(rows, columns)
        return round(times * batch * 2 * short**2 * (long - short / 3))

    return count


def _singular_values(out: Any, x: Tensor, full: bool = False, compute: bool = True, *_: Any, **__: Any) -> int:
    """Count a decomposition: 4 m n^2 - 4 n^3 / 3 for the values alone, 14 m n^2 + 8 n^3 with the vectors."""
    batch, rows, columns = _matrices(x)
    long, short = max(rows, columns), min(rows, columns)
    return round(batch * (14 * long * short**2 + 8 * short**3 if compute else 4 * short**2 * (long - short / 3)))


def _least_squares(out: Any, x: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    columns = b.shape[-1] if b.dim() == x.dim() else 1
    return _orthogonal(1)(out, x) + 4 * x.numel() * columns


def _solution(factored: float, matrix: int, right: int) -> Callable[..., int]:
    """Return the formula of a solution of linear equations.

    Args:
        factored: n^3 of the factorisation, 0 if the matrix is factored already; negative for a triangular one, whose
            solution takes half of the products.
        matrix: position of the matrix [..., n, n] in the arguments.
        right: position of the right side [..., n, columns], or [..., n].
    """

    def count(out: Any, *args: Any, **_: Any) -> int:
        a, b = args[matrix], args[right]
        solution = (1 if factored < 0 else 2) * a.shape[-1] * b.numel()
        return int(max(factored, 0) * prod(a.shape) * a.shape[-1] + solution + 0.5)

    return count


def _matrix_exponential(out: Any, x: Tensor, *_: Any, **__: Any) -> int:
    """Count the five products of a Taylor polynomial of degree 18; squarings depend on the values."""
    return 5 * 2 * x.numel() * x.shape[-1]


def _linear_backward(out: Any, x: Tensor, grad: Tensor, *_: Any, **__: Any) -> int:
    """Count the products for the gradients of the input and of the weight."""
    return 2 * 2 * x.numel() * grad.shape[-1]


def _tokens_and_pairs(x: Tensor, keys: int) -> tuple[int, int]:
    """Return the number of tokens of an input [batch, length, width], and of pairs of a query and a key."""
    if x.is_nested:
        lengths = x._nested_tensor_size()[:, 0].tolist()
        return sum(lengths), sum(length * length for length in lengths)
    return x.shape[0] * x.shape[1], x.shape[0] * x.shape[1] * keys


def _multihead_attention(
    out: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average: bool = True,
    mask_type: int | None = None,
) -> int:
    """Count an attention layer as its parts are: projections, the biases of three, scores and values.

    With `need_weights` also the scaling of queries, the softmax and the mean over heads; without, attention is one
    operator of which the products count.
    """
    tokens, pairs = _tokens_and_pairs(query, 0 if query.is_nested else key.shape[1])
    flops = 2 * tokens * (qkv_weight.numel() + proj_weight.numel()) + 3 * tokens * width + 4 * pairs * width
    return flops + (tokens * width + (5 + average) * pairs * heads if need_weights else 0)


def _encoder_layer(
    out: Any,
    x: Tensor,
    width: int,
    heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    *_: Any,
    **__: Any,
) -> int:
    """Count a transformer layer: attention, two layers, an activation, two norms and two sums."""
    attention = _multihead_attention(
        None, x, x, x, width, heads, qkv_weight, qkv_bias, proj_weight, proj_bias, need_weights=False
    )
    tokens, _pairs = _tokens_and_pairs(x, 0)
    products = 2 * tokens * (ffn_weight_1.numel() + ffn_weight_2.numel())
    per_token = ffn_weight_1.shape[0] + 2 * (_OPS_PER_INPUT["native_layer_norm"] + 1) * width
    return attention + products + tokens * per_token


GROUPED = ("_grouped_mm", "grouped_mm_fallback")
"""Products of groups of rows or columns with a matrix each; the latter is transformers'."""

EMBEDDING_BAGS = ("_embedding_bag", "_embedding_bag_forward_only")


def _grouped_product(out: Any, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Count a grouped product: with two stacks a product a pair of matrices; else groups divide a dimension of one."""
    return 2 * prod(a.shape[-2:]) * b.shape[-1] * (len(a) if a.dim() == b.dim() == 3 else 1)


# Operations a unit of a recurrent layer beside its products, by torch's mode number: ReLU, tanh, LSTM, GRU.
_OPS_PER_UNIT = (2, 2, 13, 10)


def _lstm_layer(out: Any, x: Tensor, input_weight: Tensor, hidden_weight: Tensor, *_: Any, **__: Any) -> int:
    """Count oneDNN's LSTM: one direction of one layer."""
    products = 2 * (input_weight.numel() + hidden_weight.numel())
    return x.shape[:-1].numel() * (products + _OPS_PER_UNIT[2] * hidden_weight.shape[-1])


def _recurrent_layers(
    out: Any,
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

    def count(out: Any, input_gates: Tensor, hidden_gates: Tensor, state: Tensor, *biases: Tensor | None) -> int:
        return _OPS_PER_UNIT[mode] * state.numel() + sum(bias is not None for bias in biases) * input_gates.numel()

    return count


def _trilinear(
    out: Any,
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
    out: Any,
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


def _miopen_recurrent_layers(
    out: Any, x: Tensor, weights: Sequence[Tensor], stride: int, hidden: Tensor, cell: Tensor | None, *args: Any
) -> int:
    return _recurrent_layers(out, x, weights, stride, None, hidden, cell, *args)


def _recurrent_backward(
    out: Any, x: Tensor, weights: Sequence[Tensor], stride: int, buffer: Any, hidden: Tensor, cell: Any, *args: Any
) -> int:
    """Count cuDNN's backward pass: for each product two, of the gradients of its two factors."""
    mode, size = args[4:6]  # after the output and the gradients of output, state and cell
    return 2 * _recurrent_layers(out, x, weights, stride, buffer, hidden, cell, mode, size)


def _lstm_layer_backward(out: Any, x: Tensor, input_weight: Tensor, hidden_weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _lstm_layer(out, x, input_weight, hidden_weight)


def _cell_backward(out: Any, grad: Tensor | None, *_: Any, **__: Any) -> int:
    return 2 * _OPS_PER_UNIT[2] * _floats(grad)


def _chunked_cross_entropy(out: Any, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Count the products to logits, and for scalar losses, which give gradients too, the two of these."""
    times = 3 if isinstance(out, tuple | list) else 1
    logits = x.numel() // x.shape[-1] * weight.shape[0]
    return times * 2 * logits * x.shape[-1] + _OPS_PER_INPUT["_log_softmax"] * logits


def _renormalised_rows(out: Any, weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> int:
    """Count norm and scaling of each row that is read."""
    return 3 * indices.numel() * weight.shape[-1]


RULES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(GROUPED, _grouped_product),
    **dict.fromkeys(("_scaled_grouped_mm", "_scaled_grouped_mm_v2"), _grouped_product),
    **dict.fromkeys(EMBEDDING_BAGS, _embedding_bag),
    "embedding_renorm": _renormalised_rows,
    "mkldnn_rnn_layer": _lstm_layer,
    "mkldnn_rnn_layer_backward": _lstm_layer_backward,
    "_cudnn_rnn": _recurrent_layers,
    "_cudnn_rnn_backward": _recurrent_backward,
    "miopen_rnn": _miopen_recurrent_layers,
    "_thnn_fused_lstm_cell": _cell(2),
    "_thnn_fused_gru_cell": _cell(3),
    **dict.fromkeys(("_thnn_fused_lstm_cell_backward_impl", "_thnn_fused_gru_cell_backward"), _cell_backward),
    "_trilinear": _trilinear,
    # Products that torch's registry lacks; scales of quantised weights are not counted.
    **dict.fromkeys(("mv", "dot", "vdot", "linear", "mkldnn_linear", "_int_mm", "_scaled_mm_v2"), _product(0)),
    **dict.fromkeys(("_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu"), _product(0)),
    **dict.fromkeys(("_weight_int4pack_mm_with_scales_and_zeros", "_dyn_quant_matmul_4bit"), _product(0)),
    **dict.fromkeys(("_mixed_dtypes_linear", "_sparse_semi_structured_linear"), _product(0)),
    **dict.fromkeys(("_sparse_semi_structured_mm", "_sparse_sparse_matmul"), _product(0)),
    "_sparse_mm_reduce_impl": lambda out, a, b, *_: 2 * a._nnz() * b.shape[-1],
    **dict.fromkeys(("hspmm", "_euclidean_dist"), _product(0)),
    **dict.fromkeys(("addmv", "_addmm_activation", "_sparse_addmm", "sspaddmm", "sparse_sampled_addmm"), _product(1)),
    "_sparse_semi_structured_addmm": _product(1),
    "_cslt_sparse_mm": _product(1),
    "addbmm": lambda out, x, a, b, **_: 2 * a.numel() * b.shape[-1],
    "addr": lambda out, *_, **__: 2 * out.numel(),
    "trace": lambda out, x: min(x.shape) if _floats(x) else 0,
    **dict.fromkeys(("linear_backward", "mkldnn_linear_backward"), _linear_backward),
    **dict.fromkeys(("_conv_depthwise2d", "conv_depthwise3d", "slow_conv3d_forward"), _convolution),
    **dict.fromkeys(("slow_conv_dilated2d", "slow_conv_dilated3d", "mkldnn_convolution"), _convolution),
    **dict.fromkeys(("_nnpack_spatial_convolution", "_mps_convolution"), _convolution),
    **dict.fromkeys((f"{kind}_convolution_relu" for kind in ("cudnn", "miopen")), _convolution),
    **dict.fromkeys((f"{kind}_convolution_add_relu" for kind in ("cudnn", "miopen")), _convolution),
    **dict.fromkeys(("miopen_convolution", "miopen_depthwise_convolution"), _convolution),
    **dict.fromkeys(("slow_conv_transpose2d", "slow_conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys((f"{kind}_convolution_transpose" for kind in ("cudnn", "miopen", "_mps")), _transposed_convolution),
    "conv_tbc": lambda out, x, weight, *_: 2 * out.numel() * prod(weight.shape[:2]),
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r", "fft_r2c", "fft_c2c", "fft_c2r"), _fourier),
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback"), _grid_sample),
    "cudnn_grid_sampler": _grid_sample,
    **dict.fromkeys((f"grid_sampler_{n}d_backward" for n in (2, 3)), _grid_sample_backward),
    "_grid_sampler_2d_cpu_fallback_backward": _grid_sample_backward,
    "affine_grid_generator": lambda out, theta, *_: 2 * out.numel() * theta.shape[-1],
    "cudnn_affine_grid_generator": lambda out, theta, *_: 2 * out.numel() * theta.shape[-1],
    "cudnn_affine_grid_generator_backward": lambda out, grad, *_: 2 * grad.numel() * out.shape[-1],
    **dict.fromkeys(("index_add", "index_reduce"), _index_add),
    **dict.fromkeys(("scatter_add", "scatter_reduce"), _scatter_add),
    "scatter": _scatter,
    **dict.fromkeys(("index_put", "_index_put_impl", "_unsafe_index_put", "put"), _put),
    "_unsafe_masked_index_put_accumulate": _masked_put,
    "_cdist_forward": _distances,
    "_pdist_forward": lambda out, x, *_: 3 * out.numel() * x.shape[-1],
    "_cdist_backward": _distances_backward,
    "_pdist_backward": _distances_backward,
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), _target_loss),
    **dict.fromkeys(
        ("_linear_cross_entropy_batch_chunked", "_linear_cross_entropy_batch_chunked_no_reduction"),
        _chunked_cross_entropy,
    ),
    **dict.fromkeys(("_ctc_loss", "_cudnn_ctc_loss", "miopen_ctc_loss"), _ctc_loss),
    "_ctc_loss_backward": _ctc_loss_backward,
    **dict.fromkeys(("cholesky", "linalg_cholesky_ex", "linalg_ldl_factor_ex"), _cubic(1 / 3)),
    **dict.fromkeys(("linalg_lu", "linalg_lu_factor_ex", "_linalg_det", "_linalg_slogdet"), _cubic(2 / 3)),
    **dict.fromkeys(("linalg_inv_ex", "cholesky_inverse"), _cubic(2)),
    "_linalg_eigh": lambda out, x, uplo="L", vectors=True, **_: _cubic(9 if vectors else 4 / 3)(out, x),
    **dict.fromkeys(("linalg_eigvals", "_linalg_eigvals"), _cubic(10)),
    "linalg_eig": _cubic(25),
    "linalg_qr": lambda out, x, mode="reduced", **_: _orthogonal(1 if mode == "r" else 2)(out, x),
    **dict.fromkeys(("geqrf", "linalg_householder_product"), _orthogonal(1)),
    "ormqr": lambda out, x, tau, other, *_, **__: 4 * other.numel() * tau.shape[-1],
    **dict.fromkeys(("_linalg_svd", "svd"), _singular_values),
    "linalg_pinv": lambda out, x, *_, **__: _singular_values(out, x) + 2 * x.numel() * min(x.shape[-2:]),
    "linalg_lstsq": _least_squares,
    "linalg_matrix_exp": _matrix_exponential,
    "_linalg_solve_ex": _solution(2 / 3, 0, 1),
    "linalg_solve_triangular": _solution(-1, 0, 1),
    "triangular_solve": _solution(-1, 1, 0),
    **dict.fromkeys(("cholesky_solve", "_cholesky_solve_helper"), _solution(0, 1, 0)),
    "linalg_lu_solve": _solution(0, 0, 2),
    "linalg_ldl_solve": _solution(0, 0, 2),
    "_native_multi_head_attention": _multihead_attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "_transform_bias_rescale_qkv": lambda out, x, *_: _floats(x) * 4 // 3,  # three biases, and the scale of queries
    "_amp_foreach_non_finite_check_and_unscale": lambda out, tensors, *_: _floats(tensors),
}
"""Formulas of operators by the name of their functional form; each takes the result and the operator's arguments."""
