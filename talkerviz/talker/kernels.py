"""What the fused talker's layers run on a GPU, for one stream: five kernels of a dense layer, six of one with experts.

Each reads its weights before it waits for what the kernel before it computed: with programmatic dependent launch it is
already there by then, and so memory never rests. Numbers are rounded where the layers' own code rounds them; sums are
taken in another order.

In all of them PDL says whether they are launched so, TOKENS is how many rows of x there are, and BLOCK_* are powers of 2.
"""

# ruff: noqa: N803 (what is known when a kernel is compiled is in capitals, as in Triton's own code)
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


NOTHING = tl.constexpr(-1e30)
"""The score of a position that is not looked at: less than any, and a number, so that differences are numbers."""


@triton.jit
def _rounded(x, like):  # type: ignore[no-untyped-def]
    """x as the numbers that are left of it in the dtype of the memory `like`, in float32."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _silu(x):  # type: ignore[no-untyped-def]
    return x / (1 + tl.exp(-x))


@triton.jit
def _normed(x, scale, eps, like, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """RMSNorm of x, float32 and zero beyond SIZE."""
    return _rounded(scale * _rounded(x * tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps), like), like)


@triton.jit
def _times(weights, x):  # type: ignore[no-untyped-def]
    """Rows of weights [rows, columns] times x [columns], in float32."""
    return tl.sum(weights.to(tl.float32) * x[None, :], axis=1)


@triton.jit
def project(  # type: ignore[no-untyped-def]
    x,
    norm,
    eps,
    first,
    second,
    third,
    out,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORMED: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Three matrices of so many rows times x, which is normalised on the way: out [TOKENS, FIRST + SECOND + THIRD]."""
    if PDL:
        gdc_launch_dependents()
    start = tl.program_id(0) * BLOCK_ROWS
    if start < FIRST:
        matrix = first
        skipped = 0
    elif start < FIRST + SECOND:
        matrix = second
        skipped = FIRST
    else:
        matrix = third
        skipped = FIRST + SECOND
    rows = start + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    inside = columns < COLUMNS
    weights = tl.load(matrix + (rows - skipped)[:, None] * COLUMNS + columns[None, :], inside[None, :], 0.0)
    if NORMED:
        scale = tl.load(norm + columns, inside, 0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    for token in tl.static_range(TOKENS):
        row = tl.load(x + token * COLUMNS + columns, inside, 0.0).to(tl.float32)
        if NORMED:
            row = _normed(row, scale, eps, x, COLUMNS)
        tl.store(out + token * (FIRST + SECOND + THIRD) + rows, _times(weights, row).to(out.dtype.element_ty))


@triton.jit
def _turned(first, second, cos, sin, like):  # type: ignore[no-untyped-def]
    """The two halves of a head, rotated by its angles."""
    return (
        _rounded(_rounded(first * cos, like) + _rounded(-second * sin, like), like),
        _rounded(_rounded(second * cos, like) + _rounded(first * sin, like), like),
    )


@triton.jit
def _head(  # type: ignore[no-untyped-def]
    projected, first_scale, second_scale, eps, cos, sin, half, inside, HALF: tl.constexpr
):
    """A query's or key's two halves, normalised and rotated."""
    first = tl.load(projected + half, inside, 0.0).to(tl.float32)
    second = tl.load(projected + HALF + half, inside, 0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(first * first + second * second, axis=0) / (2 * HALF) + eps)
    first = _rounded(first_scale * _rounded(first * root, projected), projected)
    second = _rounded(second_scale * _rounded(second * root, projected), projected)
    return _turned(first, second, cos, sin, projected)


@triton.jit
def attend(  # type: ignore[no-untyped-def]
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

    `projected` [TOKENS, HEADS + 2 KEY_HEADS, 2 HALF] are queries, keys and values; the new keys and values are written to
    the cache, [KEY_HEADS, positions, 2 HALF] with `stride` from head to head, from `place` on. `cos` and `sin` are those of the new tokens, or of all positions. `mask`, of one token,
    has all positions. `mixed` [SPLITS, TOKENS,
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
def project_mixed(  # type: ignore[no-untyped-def]
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
    weights = tl.load(matrix + rows[:, None] * (HEADS * HEAD) + columns[None, :], inside[None, :], 0.0)
    if PDL:
        gdc_wait()
    for token in tl.static_range(TOKENS):
        most = tl.load(greatest + token * HEADS + columns // HEAD, inside, 0.0)
        for split in tl.static_range(1, SPLITS):
            most = tl.maximum(
                most, tl.load(greatest + (split * TOKENS + token) * HEADS + columns // HEAD, inside, 0.0)
            )
        summed = tl.zeros((BLOCK_COLUMNS,), tl.float32)
        mix = tl.zeros((BLOCK_COLUMNS,), tl.float32)
        for split in tl.static_range(SPLITS):
            which = (split * TOKENS + token) * HEADS
            kept = tl.exp(tl.load(greatest + which + columns // HEAD, inside, 0.0) - most)
            summed += kept * tl.load(total + which + columns // HEAD, inside, 1.0)
            mix += kept * tl.load(mixed + which * HEAD + columns, inside, 0.0)
        product = _rounded(_times(weights, _rounded(mix / summed, out)), out)
        before = tl.load(residual + token * ROWS + rows).to(tl.float32)
        tl.store(out + token * ROWS + rows, (before + product).to(out.dtype.element_ty))


@triton.jit
def gate(  # type: ignore[no-untyped-def]
    x,
    norm,
    eps,
    gates,
    ups,
    out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The first half of a gated MLP, of x that is normalised on the way: out [TOKENS, ROWS]."""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    inside = columns < COLUMNS
    where = rows[:, None] * COLUMNS + columns[None, :]
    gate_weights = tl.load(gates + where, inside[None, :], 0.0)
    up_weights = tl.load(ups + where, inside[None, :], 0.0)
    scale = tl.load(norm + columns, inside, 0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    for token in tl.static_range(TOKENS):
        row = tl.load(x + token * COLUMNS + columns, inside, 0.0).to(tl.float32)
        row = _normed(row, scale, eps, x, COLUMNS)
        opened = _rounded(_silu(_rounded(_times(gate_weights, row), x)), x)
        tl.store(
            out + token * ROWS + rows, (opened * _rounded(_times(up_weights, row), x)).to(out.dtype.element_ty)
        )


@triton.jit
def project_added(  # type: ignore[no-untyped-def]
    x,
    matrix,
    residual,
    out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A matrix times x, added to the residual: out [TOKENS, ROWS]."""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    inside = columns < COLUMNS
    weights = tl.load(matrix + rows[:, None] * COLUMNS + columns[None, :], inside[None, :], 0.0)
    if PDL:
        gdc_wait()
    for token in tl.static_range(TOKENS):
        row = tl.load(x + token * COLUMNS + columns, inside, 0.0).to(tl.float32)
        before = tl.load(residual + token * ROWS + rows).to(tl.float32)
        tl.store(out + token * ROWS + rows, (before + _rounded(_times(weights, row), x)).to(out.dtype.element_ty))


@triton.jit
def route(  # type: ignore[no-untyped-def]
    x,
    norm,
    eps,
    router,
    gates,
    ups,
    shared_gate,
    logits,
    shared,
    opening,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Of x, normalised on the way, the router's logits [EXPERTS], the first half of the shared expert, `shared` [ROWS],
    and how far the gate of that is open, `opening` [1]."""
    if PDL:
        gdc_launch_dependents()
    block = tl.program_id(0)
    columns = tl.arange(0, BLOCK_COLUMNS)
    inside = columns < COLUMNS
    scale = tl.load(norm + columns, inside, 0.0).to(tl.float32)
    if block < ROWS // BLOCK_ROWS:
        rows = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        where = rows[:, None] * COLUMNS + columns[None, :]
        gate_weights = tl.load(gates + where, inside[None, :], 0.0)
        up_weights = tl.load(ups + where, inside[None, :], 0.0)
        if PDL:
            gdc_wait()
        row = _normed(tl.load(x + columns, inside, 0.0).to(tl.float32), scale, eps, x, COLUMNS)
        opened = _rounded(_silu(_rounded(_times(gate_weights, row), x)), x)
        tl.store(shared + rows, (opened * _rounded(_times(up_weights, row), x)).to(shared.dtype.element_ty))
    elif block < ROWS // BLOCK_ROWS + EXPERTS // BLOCK_EXPERTS:
        experts = (block - ROWS // BLOCK_ROWS) * BLOCK_EXPERTS + tl.arange(0, BLOCK_EXPERTS)
        weights = tl.load(router + experts[:, None] * COLUMNS + columns[None, :], inside[None, :], 0.0)
        if PDL:
            gdc_wait()
        row = _normed(tl.load(x + columns, inside, 0.0).to(tl.float32), scale, eps, x, COLUMNS)
        tl.store(logits + experts, _times(weights, row).to(logits.dtype.element_ty))
    else:
        weight = tl.load(shared_gate + columns, inside, 0.0).to(tl.float32)
        if PDL:
            gdc_wait()
        row = _normed(tl.load(x + columns, inside, 0.0).to(tl.float32), scale, eps, x, COLUMNS)
        far = 1 / (1 + tl.exp(-_rounded(tl.sum(weight * row, axis=0), x)))
        tl.store(opening, far.to(opening.dtype.element_ty))


@triton.jit
def choose_experts(  # type: ignore[no-untyped-def]
    logits, experts, shares, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, PDL: tl.constexpr
):
    """Of logits [EXPERTS] the greatest, of equals the first: which they are, and their shares, each [CHOSEN]."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    numbers = tl.arange(0, BLOCK_EXPERTS)
    own = tl.load(logits + numbers, numbers < EXPERTS, -float("inf")).to(tl.float32)
    ahead = (own[None, :] > own[:, None]) | ((own[None, :] == own[:, None]) & (numbers[None, :] < numbers[:, None]))
    ranks = tl.sum(ahead.to(tl.int32), axis=1)
    likely = tl.where(ranks < CHOSEN, tl.exp(own - tl.max(own, axis=0)), 0.0)
    tl.store(experts + ranks, numbers, ranks < CHOSEN)
    tl.store(shares + ranks, (likely / tl.sum(likely, axis=0)).to(shares.dtype.element_ty), ranks < CHOSEN)


@triton.jit
def gate_experts(  # type: ignore[no-untyped-def]
    x,
    norm,
    eps,
    experts,
    gates_ups,
    out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The first half of every chosen expert, of x that is normalised on the way: out [chosen, ROWS]."""
    slot = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    inside = columns < COLUMNS
    scale = tl.load(norm + columns, inside, 0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        # Only now: what comes next reads `experts` before it waits.
        gdc_launch_dependents()
    expert = tl.load(experts + slot)
    where = rows[:, None] * COLUMNS + columns[None, :]
    matrix = gates_ups + expert.to(tl.int64) * (2 * ROWS * COLUMNS)
    gate_weights = tl.load(matrix + where, inside[None, :], 0.0)
    up_weights = tl.load(matrix + ROWS * COLUMNS + where, inside[None, :], 0.0)
    row = _normed(tl.load(x + columns, inside, 0.0).to(tl.float32), scale, eps, x, COLUMNS)
    opened = _rounded(_silu(_rounded(_times(gate_weights, row), x)), x)
    tl.store(out + slot * ROWS + rows, (opened * _rounded(_times(up_weights, row), x)).to(out.dtype.element_ty))


@triton.jit
def project_experts(  # type: ignore[no-untyped-def]
    gated,
    experts,
    shares,
    shared,
    opening,
    downs,
    shared_down,
    residual,
    out,
    CHOSEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARED_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHOSEN: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_SHARED_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The second half of the chosen experts and of the shared one, weighted and added to the residual: out [ROWS]."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    slots = tl.arange(0, BLOCK_CHOSEN)
    inside = (slots < CHOSEN)[:, None] & (columns < COLUMNS)[None, :]
    shared_columns = tl.arange(0, BLOCK_SHARED_COLUMNS)
    shared_inside = shared_columns < SHARED_COLUMNS
    shared_weights = tl.load(
        shared_down + rows[:, None] * SHARED_COLUMNS + shared_columns[None, :], shared_inside[None, :], 0.0
    )
    # Those chosen, for which what ran before this one's predecessor has waited.
    chosen = tl.load(experts + slots, slots < CHOSEN, 0).to(tl.int64)
    where = (chosen[:, None] * ROWS + rows[None, :])[:, :, None] * COLUMNS + columns[None, None, :]
    weights = tl.load(downs + where, inside[:, None, :], 0.0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    part = tl.load(shares + slots, slots < CHOSEN, 0.0).to(tl.float32)
    opened = tl.load(gated + slots[:, None] * COLUMNS + columns[None, :], inside, 0.0).to(tl.float32)
    products = _rounded(tl.sum(weights.to(tl.float32) * opened[:, None, :], axis=2), out)
    routed = tl.sum(_rounded(part[:, None] * products, out), axis=0)
    row = tl.load(shared + shared_columns, shared_inside, 0.0).to(tl.float32)
    common = _rounded(_times(shared_weights, row), out)
    common = _rounded(tl.load(opening).to(tl.float32) * common, out)
    before = tl.load(residual + rows).to(tl.float32)
    tl.store(out + rows, (before + _rounded(_rounded(routed, out) + common, out)).to(out.dtype.element_ty))


@triton.jit
def normalise(  # type: ignore[no-untyped-def]
    x, norm, eps, out, COLUMNS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, PDL: tl.constexpr
):
    """RMSNorm of rows, one a program: out [rows, COLUMNS]."""
    if PDL:
        gdc_launch_dependents()
    columns = tl.arange(0, BLOCK_COLUMNS)
    inside = columns < COLUMNS
    scale = tl.load(norm + columns, inside, 0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    where = tl.program_id(0) * COLUMNS + columns
    row = _normed(tl.load(x + where, inside, 0.0).to(tl.float32), scale, eps, x, COLUMNS)
    tl.store(out + where, row.to(out.dtype.element_ty), inside)
