"""Kernels of attention: one projects to queries, keys and values, one attends, one projects back."""

# ruff: noqa: N803, RUF005 (compile-time constants are in capitals; Triton has no unpacking)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from talkerviz.talker.kernels.launch import block_rows, launch_options, next_power_of_2
from talkerviz.talker.kernels.parts import load_rows, rounded, times
from talkerviz.talker.kernels.rows import project_rows
from talkerviz.talker.model.attention import TalkerCodePredictorAttention
from talkerviz.talker.model.cache import LayerCache, StaticLayerCache
from talkerviz.talker.model.layers import RMSNorm

NOTHING = tl.constexpr(-1e30)
"""Score of a masked position: lower than any other, and finite, so that differences are not NaN."""


@triton.jit
def _turned(first, second, cos, sin, like):
    """Rotate the two halves of a head by its angles."""
    return (
        rounded(rounded(first * cos, like) + rounded(-second * sin, like), like),
        rounded(rounded(second * cos, like) + rounded(first * sin, like), like),
    )


@triton.jit
def _halves(head, half, inside, HALF: tl.constexpr):
    """Load the two halves of a head as float32."""
    first = tl.load(head + half, inside, 0.0).to(tl.float32)
    return first, tl.load(head + HALF + half, inside, 0.0).to(tl.float32)


@triton.jit
def _ready(first, second, first_scale, second_scale, eps, cos, sin, like, HALF: tl.constexpr):
    """Normalise and rotate the two halves of a query or key."""
    root = tl.rsqrt(tl.sum(first * first + second * second, axis=0) / (2 * HALF) + eps)
    first = rounded(first_scale * rounded(first * root, like), like)
    second = rounded(second_scale * rounded(second * root, like), like)
    return _turned(first, second, cos, sin, like)


@triton.jit
def _block(cached, positions, end, half, inside, HALF: tl.constexpr):
    """Load the two halves of a head at positions before `end` [positions, HALF] in their dtype, zero beyond."""
    spots = cached + positions[:, None] * 2 * HALF + half[None, :]
    there = (positions < end)[:, None] & inside[None, :]
    return tl.load(spots, there, 0.0), tl.load(spots + HALF, there, 0.0)


# Triton would recompile for values of `place` that are 1 or multiples of 16.
@triton.jit(do_not_specialize=["place"])
def attend(
    projected,
    query_norm,
    key_norm,
    query_eps,
    key_eps,
    cos,
    sin,
    keys,
    values,
    place,
    mask,
    mixed,
    greatest,
    total,
    scale,
    stride,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PLACE_IN_MEMORY: tl.constexpr,
    ANGLES_OF_ALL: tl.constexpr,
    MASKED: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from one query head and token to a share of the positions (a split): flash decoding.

    `projected` [TOKENS, HEADS + 2 KEY_HEADS, 2 HALF] are queries, keys and values. The new keys and values are written
    to the cache, [KEY_HEADS, positions, 2 HALF] with `stride` from head to head, from `place` on. `cos` and `sin` are
    of the new tokens, or of all positions. `mask`, for one token only, covers all positions and
    is 0 for those to attend to. Outputs are float32: the weighted sums of values, `mixed` [SPLITS, TOKENS, HEADS,
    2 HALF], not yet divided by the sums of weights, `total` [SPLITS, TOKENS, HEADS], and for several SPLITS the
    greatest scores, `greatest`, of the same shape.
    """
    if PDL:
        gdc_launch_dependents()
    head = tl.program_id(0)
    token = tl.program_id(1)
    split = tl.program_id(2)
    key_head = head // (HEADS // KEY_HEADS)
    half = tl.arange(0, BLOCK_HALF)
    inside = half < HALF
    query_scale_first, query_scale_second = _halves(query_norm, half, inside, HALF)
    key_scale_first, key_scale_second = _halves(key_norm, half, inside, HALF)
    if PDL:
        gdc_wait()
    if PLACE_IN_MEMORY:
        place = tl.load(place)
    # All loads are issued before the first of them is used.
    width = 2 * HALF * (HEADS + 2 * KEY_HEADS)
    query_first, query_second = _halves(projected + token * width + head * 2 * HALF, half, inside, HALF)
    if ANGLES_OF_ALL:
        cos += place * 2 * HALF
        sin += place * 2 * HALF
    new_firsts = ()
    new_seconds = ()
    value_firsts = ()
    value_seconds = ()
    cosines = ()
    sines = ()
    for new in tl.static_range(TOKENS):
        key = projected + new * width + (HEADS + key_head) * 2 * HALF
        new_first, new_second = _halves(key, half, inside, HALF)
        value_first, value_second = _halves(key + KEY_HEADS * 2 * HALF, half, inside, HALF)
        new_firsts = new_firsts + (new_first,)
        new_seconds = new_seconds + (new_second,)
        value_firsts = value_firsts + (value_first,)
        value_seconds = value_seconds + (value_second,)
        cosines = cosines + (tl.load(cos + new * 2 * HALF + half, inside, 0.0).to(tl.float32),)
        sines = sines + (tl.load(sin + new * 2 * HALF + half, inside, 0.0).to(tl.float32),)
    # This program's share of the cached positions.
    share = tl.cdiv(tl.cdiv(place, SPLITS), BLOCK_POSITIONS) * BLOCK_POSITIONS
    start = split * share
    end = tl.minimum(start + share, place)
    positions = start + tl.arange(0, BLOCK_POSITIONS)
    own_keys = keys + key_head * stride
    own_values = values + key_head * stride
    old_key_first, old_key_second = _block(own_keys, positions, end, half, inside, HALF)
    old_value_first, old_value_second = _block(own_values, positions, end, half, inside, HALF)

    own_cos = tl.load(cos + token * 2 * HALF + half, inside, 0.0).to(tl.float32)
    own_sin = tl.load(sin + token * 2 * HALF + half, inside, 0.0).to(tl.float32)
    query_first, query_second = _ready(
        query_first, query_second, query_scale_first, query_scale_second, query_eps, own_cos, own_sin, projected, HALF
    )
    most = tl.full((), NOTHING, tl.float32)
    summed = tl.zeros((), tl.float32)
    mix_first = tl.zeros((BLOCK_HALF,), tl.float32)
    mix_second = tl.zeros((BLOCK_HALF,), tl.float32)
    while start < end:
        attended = positions < end
        if MASKED:
            attended = attended & (tl.load(mask + positions, positions < end, 0.0) == 0)
        both = (
            old_key_first.to(tl.float32) * query_first[None, :] + old_key_second.to(tl.float32) * query_second[None, :]
        )
        scores = tl.where(attended, tl.sum(both, axis=1) * scale, NOTHING)
        rise = tl.maximum(most, tl.max(scores, axis=0))
        kept = tl.exp(most - rise)
        weights = tl.where(attended, tl.exp(scores - rise), 0.0)
        summed = summed * kept + tl.sum(weights, axis=0)
        mix_first = mix_first * kept + tl.sum(weights[:, None] * old_value_first.to(tl.float32), axis=0)
        mix_second = mix_second * kept + tl.sum(weights[:, None] * old_value_second.to(tl.float32), axis=0)
        most = rise
        start += BLOCK_POSITIONS
        positions += BLOCK_POSITIONS
        old_key_first, old_key_second = _block(own_keys, positions, end, half, inside, HALF)
        old_value_first, old_value_second = _block(own_values, positions, end, half, inside, HALF)

    # The new tokens are read from `projected`: other programs may not have written them to the cache yet.
    for new in tl.static_range(TOKENS):
        new_first, new_second = _ready(
            new_firsts[new],
            new_seconds[new],
            key_scale_first,
            key_scale_second,
            key_eps,
            cosines[new],
            sines[new],
            projected,
            HALF,
        )
        seen = (split == 0) & (new <= token)
        if MASKED:
            seen = seen & (tl.load(mask + place + new) == 0)
        score = tl.sum(query_first * new_first + query_second * new_second, axis=0)
        score = tl.where(seen, score * scale, NOTHING)
        new_most = tl.maximum(most, score)
        kept_then = tl.exp(most - new_most)
        weight = tl.where(seen, tl.exp(score - new_most), 0.0)
        summed = summed * kept_then + weight
        mix_first = mix_first * kept_then + weight * value_firsts[new]
        mix_second = mix_second * kept_then + weight * value_seconds[new]
        most = new_most
        if (split == 0) & (token == new) & (head % (HEADS // KEY_HEADS) == 0):
            spot = (place + new) * 2 * HALF + half
            tl.store(own_keys + spot, new_first.to(keys.dtype.element_ty), inside)
            tl.store(own_keys + spot + HALF, new_second.to(keys.dtype.element_ty), inside)
            tl.store(own_values + spot, value_firsts[new].to(values.dtype.element_ty), inside)
            tl.store(own_values + spot + HALF, value_seconds[new].to(values.dtype.element_ty), inside)

    which = (split * TOKENS + token) * HEADS + head
    tl.store(mixed + which * 2 * HALF + half, mix_first, inside)
    tl.store(mixed + which * 2 * HALF + HALF + half, mix_second, inside)
    if SPLITS > 1:
        tl.store(greatest + which, most)
    tl.store(total + which, summed)


@triton.jit
def project_mixed(
    mixed,
    greatest,
    total,
    matrix,
    residual,
    out,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Combine the splits of `attend`, multiply a matrix by them and add the residual: out [TOKENS, ROWS]."""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    inside = columns < HEADS * HEAD
    weights = load_rows(matrix, rows, columns, HEADS * HEAD)
    if PDL:
        gdc_wait()
    for token in tl.static_range(TOKENS):
        if SPLITS == 1:
            mix = tl.load(mixed + token * HEADS * HEAD + columns, inside, 0.0)
            summed = tl.load(total + token * HEADS + columns // HEAD, inside, 1.0)
        else:
            most = tl.load(greatest + token * HEADS + columns // HEAD, inside, 0.0)
            for split in tl.static_range(1, SPLITS):
                which = (split * TOKENS + token) * HEADS
                most = tl.maximum(most, tl.load(greatest + which + columns // HEAD, inside, 0.0))
            summed = tl.zeros((BLOCK_COLUMNS,), tl.float32)
            mix = tl.zeros((BLOCK_COLUMNS,), tl.float32)
            for split in tl.static_range(SPLITS):
                which = (split * TOKENS + token) * HEADS
                kept = tl.exp(tl.load(greatest + which + columns // HEAD, inside, 0.0) - most)
                summed += kept * tl.load(total + which + columns // HEAD, inside, 1.0)
                mix += kept * tl.load(mixed + which * HEAD + columns, inside, 0.0)
        product = rounded(times(weights, rounded(mix / summed, out)), out)
        before = tl.load(residual + token * ROWS + rows).to(tl.float32)
        tl.store(out + token * ROWS + rows, (before + product).to(out.dtype.element_ty))


def add_attention(
    x: Tensor,
    attention: TalkerCodePredictorAttention,
    norm: RMSNorm,
    position_embeddings: tuple[Tensor, Tensor],
    cache: LayerCache,
) -> Tensor:
    """Add attention's output to x [1, S, H]."""
    _, key_heads, positions, head_dim = cache.keys.shape
    heads = attention.q_proj.out_features // head_dim
    tokens = x.shape[1]
    weights = [part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
    projected = project_rows(x, weights, norm)
    static = isinstance(cache, StaticLayerCache)
    mask = cache.mask if isinstance(cache, StaticLayerCache) else None
    # One split for each 64 positions of the static cache, up to 16.
    splits = min(16, next_power_of_2(-(-positions // 64))) if static else 1
    mixed = x.new_empty(splits, tokens, heads, head_dim, dtype=torch.float32)
    greatest, total = x.new_empty(2, splits, tokens, heads, dtype=torch.float32)
    cos, sin = position_embeddings
    attend[heads, tokens, splits](
        projected,
        attention.q_norm.weight,
        attention.k_norm.weight,
        attention.q_norm.eps,
        attention.k_norm.eps,
        cos,
        sin,
        cache.keys,
        cache.values,
        cache.position if isinstance(cache, StaticLayerCache) else positions - tokens,
        mask,
        mixed,
        greatest,
        total,
        head_dim**-0.5,
        cache.keys.stride(1),
        HEADS=heads,
        KEY_HEADS=key_heads,
        HALF=head_dim // 2,
        PLACE_IN_MEMORY=static,
        ANGLES_OF_ALL=cos.shape[1] > tokens,
        MASKED=mask is not None,
        TOKENS=tokens,
        SPLITS=splits,
        BLOCK_HALF=next_power_of_2(head_dim // 2),
        BLOCK_POSITIONS=64 if static else 16,
        **launch_options(x, warps=4 if static else 1),
    )
    matrix, out = attention.o_proj.weight, torch.empty_like(x)
    rows = block_rows(matrix)
    project_mixed[(len(matrix) // rows,)](
        mixed,
        greatest,
        total,
        matrix,
        x,
        out,
        ROWS=len(matrix),
        HEADS=heads,
        HEAD=head_dim,
        TOKENS=tokens,
        SPLITS=splits,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=next_power_of_2(heads * head_dim),
        **launch_options(x),
    )
    return out
