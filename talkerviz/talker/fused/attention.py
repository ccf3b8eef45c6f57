"""Attention of new tokens: queries, keys and values in one kernel, the mix in a second, the way out in a third."""

# ruff: noqa: N803 (what is known when a kernel is compiled is in capitals, as in Triton's own code)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..attention import TalkerCodePredictorAttention
from ..cache import LayerCache, StaticLayerCache
from ..norm import RMSNorm
from .launch import block_rows, launch, power
from .parts import load_rows, rounded, times
from .rows import project_rows

NOTHING = tl.constexpr(-1e30)
"""The score of a position that is not looked at: less than any, and a number, so that differences are numbers."""


@triton.jit
def _turned(first, second, cos, sin, like):
    """The two halves of a head, rotated by its angles."""
    return (
        rounded(rounded(first * cos, like) + rounded(-second * sin, like), like),
        rounded(rounded(second * cos, like) + rounded(first * sin, like), like),
    )


@triton.jit
def _head(projected, first_scale, second_scale, eps, cos, sin, half, inside, HALF: tl.constexpr):
    """A query's or key's two halves, normalised and rotated."""
    first = tl.load(projected + half, inside, 0.0).to(tl.float32)
    second = tl.load(projected + HALF + half, inside, 0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(first * first + second * second, axis=0) / (2 * HALF) + eps)
    first = rounded(first_scale * rounded(first * root, projected), projected)
    second = rounded(second_scale * rounded(second * root, projected), projected)
    return _turned(first, second, cos, sin, projected)


@triton.jit
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
    """Of a query head, a token and a share of the positions: what it mixes of values, not yet divided by `total`.

    `projected` [TOKENS, HEADS + 2 KEY_HEADS, 2 HALF] are queries, keys and values. The new keys and values are written
    to the cache, [KEY_HEADS, positions, 2 HALF] with `stride` from head to head, from `place` on. `cos` and `sin` are
    those of the new tokens, or of all positions. `mask`, of one token, has all positions. `mixed` [SPLITS, TOKENS,
    HEADS, 2 HALF], `greatest` and `total` [SPLITS, TOKENS, HEADS] are float32.
    """
    if PDL:
        gdc_launch_dependents()
    head = tl.program_id(0)
    token = tl.program_id(1)
    split = tl.program_id(2)
    key_head = head // (HEADS // KEY_HEADS)
    half = tl.arange(0, BLOCK_HALF)
    inside = half < HALF
    query_first_scale = tl.load(query_norm + half, inside, 0.0).to(tl.float32)
    query_second_scale = tl.load(query_norm + HALF + half, inside, 0.0).to(tl.float32)
    key_first_scale = tl.load(key_norm + half, inside, 0.0).to(tl.float32)
    key_second_scale = tl.load(key_norm + HALF + half, inside, 0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    if PLACE_IN_MEMORY:
        place = tl.load(place)
    width = 2 * HALF * (HEADS + 2 * KEY_HEADS)
    angles = half
    if ANGLES_OF_ALL:
        angles += place * 2 * HALF
    own_cos = tl.load(cos + token * 2 * HALF + angles, inside, 0.0).to(tl.float32)
    own_sin = tl.load(sin + token * 2 * HALF + angles, inside, 0.0).to(tl.float32)
    query = projected + token * width + head * 2 * HALF
    query_first, query_second = _head(
        query, query_first_scale, query_second_scale, query_eps, own_cos, own_sin, half, inside, HALF
    )

    most = tl.full((), NOTHING, tl.float32)
    summed = tl.zeros((), tl.float32)
    mix_first = tl.zeros((BLOCK_HALF,), tl.float32)
    mix_second = tl.zeros((BLOCK_HALF,), tl.float32)

    # The new tokens, from what was just projected: what others write to the cache need not be there yet.
    for new in tl.static_range(TOKENS):
        seen = (split == 0) & (new <= token)
        if MASKED:
            seen = seen & (tl.load(mask + place + new) != 0)
        new_cos = tl.load(cos + new * 2 * HALF + angles, inside, 0.0).to(tl.float32)
        new_sin = tl.load(sin + new * 2 * HALF + angles, inside, 0.0).to(tl.float32)
        key = projected + new * width + (HEADS + key_head) * 2 * HALF
        key_first, key_second = _head(
            key, key_first_scale, key_second_scale, key_eps, new_cos, new_sin, half, inside, HALF
        )
        value = projected + new * width + (HEADS + KEY_HEADS + key_head) * 2 * HALF
        value_first = tl.load(value + half, inside, 0.0)
        value_second = tl.load(value + HALF + half, inside, 0.0)
        if (split == 0) & (token == new) & (head % (HEADS // KEY_HEADS) == 0):
            there = key_head * stride + (place + new) * 2 * HALF + half
            tl.store(keys + there, key_first.to(keys.dtype.element_ty), inside)
            tl.store(keys + there + HALF, key_second.to(keys.dtype.element_ty), inside)
            tl.store(values + there, value_first, inside)
            tl.store(values + there + HALF, value_second, inside)
        score = tl.sum(query_first * key_first + query_second * key_second, axis=0)
        score = tl.where(seen, score * scale, NOTHING)
        rise = tl.maximum(most, score)
        kept = tl.exp(most - rise)
        weight = tl.where(seen, tl.exp(score - rise), 0.0)
        summed = summed * kept + weight
        mix_first = mix_first * kept + weight * value_first.to(tl.float32)
        mix_second = mix_second * kept + weight * value_second.to(tl.float32)
        most = rise

    # Those before them, a share of which is this program's.
    share = tl.cdiv(tl.cdiv(place, SPLITS), BLOCK_POSITIONS) * BLOCK_POSITIONS
    start = split * share
    end = tl.minimum(start + share, place)
    while start < end:
        positions = start + tl.arange(0, BLOCK_POSITIONS)
        attended = positions < end
        if MASKED:
            attended = attended & (tl.load(mask + positions, positions < end, 0) != 0)
        spots = key_head * stride + positions[:, None] * 2 * HALF + half[None, :]
        loaded = (positions < end)[:, None] & inside[None, :]
        old_key_first = tl.load(keys + spots, loaded, 0.0).to(tl.float32)
        old_key_second = tl.load(keys + spots + HALF, loaded, 0.0).to(tl.float32)
        old_value_first = tl.load(values + spots, loaded, 0.0).to(tl.float32)
        old_value_second = tl.load(values + spots + HALF, loaded, 0.0).to(tl.float32)
        scores = tl.sum(old_key_first * query_first[None, :] + old_key_second * query_second[None, :], axis=1)
        scores = tl.where(attended, scores * scale, NOTHING)
        now_most = tl.maximum(most, tl.max(scores, axis=0))
        kept_then = tl.exp(most - now_most)
        weights = tl.where(attended, tl.exp(scores - now_most), 0.0)
        summed = summed * kept_then + tl.sum(weights, axis=0)
        mix_first = mix_first * kept_then + tl.sum(weights[:, None] * old_value_first, axis=0)
        mix_second = mix_second * kept_then + tl.sum(weights[:, None] * old_value_second, axis=0)
        most = now_most
        start += BLOCK_POSITIONS

    which = (split * TOKENS + token) * HEADS + head
    tl.store(mixed + which * 2 * HALF + half, mix_first, inside)
    tl.store(mixed + which * 2 * HALF + HALF + half, mix_second, inside)
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
    """Put together what `attend` gives, times a matrix, added to the residual: out [TOKENS, ROWS]."""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    inside = columns < HEADS * HEAD
    weights = load_rows(matrix, rows, columns, HEADS * HEAD)
    if PDL:
        gdc_wait()
    for token in tl.static_range(TOKENS):
        most = tl.load(greatest + token * HEADS + columns // HEAD, inside, 0.0)
        for split in tl.static_range(1, SPLITS):
            most = tl.maximum(most, tl.load(greatest + (split * TOKENS + token) * HEADS + columns // HEAD, inside, 0.0))
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
    mask: Tensor | None,
) -> Tensor:
    """x [1, tokens, hidden] and what attention adds to it."""
    _, key_heads, positions, head_dim = cache.keys.shape
    heads = attention.q_proj.out_features // head_dim
    tokens = x.shape[1]
    weights = [part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
    projected = project_rows(x, weights, norm)
    static = isinstance(cache, StaticLayerCache)
    # A program for each 64 positions that there may be, up to 16 of each head.
    splits = min(16, power(-(-positions // 64))) if static else 1
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
        cache.place if isinstance(cache, StaticLayerCache) else positions - tokens,
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
        BLOCK_HALF=power(head_dim // 2),
        BLOCK_POSITIONS=64 if static else 16,
        **launch(x, warps=4 if static else 1),
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
        BLOCK_COLUMNS=power(heads * head_dim),
        **launch(x),
    )
    return out
