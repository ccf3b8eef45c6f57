"""Kernels of a mixture of experts, four for the whole; the routing is never read on the host."""

# ruff: noqa: N803 (compile-time constants are in capitals, as in Triton's own code)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from talkerviz.talker.kernels.launch import block_rows, launch_options, next_power_of_2
from talkerviz.talker.kernels.parts import gated, load_row, load_rows, normed, rounded, times
from talkerviz.talker.model.layers import RMSNorm
from talkerviz.talker.model.moe import TalkerTextSparseMoeBlock


@triton.jit
def route(
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
    """Normalise x and compute the router's logits [EXPERTS], the shared expert's inner vector, `shared` [ROWS], and its
    gate, `opening` [1].
    """
    if PDL:
        gdc_launch_dependents()
    block = tl.program_id(0)
    columns = tl.arange(0, BLOCK_COLUMNS)
    scale = load_row(norm, columns, COLUMNS)
    if block < ROWS // BLOCK_ROWS:
        rows = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        gate_weights = load_rows(gates, rows, columns, COLUMNS)
        up_weights = load_rows(ups, rows, columns, COLUMNS)
        if PDL:
            gdc_wait()
        row = normed(load_row(x, columns, COLUMNS), scale, eps, x, COLUMNS)
        tl.store(shared + rows, gated(gate_weights, up_weights, row, x).to(shared.dtype.element_ty))
    elif block < ROWS // BLOCK_ROWS + EXPERTS // BLOCK_EXPERTS:
        experts = (block - ROWS // BLOCK_ROWS) * BLOCK_EXPERTS + tl.arange(0, BLOCK_EXPERTS)
        weights = load_rows(router, experts, columns, COLUMNS)
        if PDL:
            gdc_wait()
        row = normed(load_row(x, columns, COLUMNS), scale, eps, x, COLUMNS)
        tl.store(logits + experts, times(weights, row).to(logits.dtype.element_ty))
    else:
        weight = load_row(shared_gate, columns, COLUMNS)
        if PDL:
            gdc_wait()
        row = normed(load_row(x, columns, COLUMNS), scale, eps, x, COLUMNS)
        far = 1 / (1 + tl.exp(-rounded(tl.sum(weight * row, axis=0), x)))
        tl.store(opening, far.to(opening.dtype.element_ty))


@triton.jit
def choose_experts(
    logits, experts, shares, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr, BLOCK_EXPERTS: tl.constexpr, PDL: tl.constexpr
):
    """Choose the greatest of logits [EXPERTS], of equals the first: their indices and their weights, each [CHOSEN]."""
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
def gate_experts(
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
    """Normalise x and compute the inner vector of each chosen expert: out [chosen, ROWS]."""
    slot = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    scale = load_row(norm, columns, COLUMNS)
    if PDL:
        gdc_wait()
        # Only now, as the next kernel reads `experts` before it waits.
        gdc_launch_dependents()
    expert = tl.load(experts + slot)
    matrix = gates_ups + expert.to(tl.int64) * (2 * ROWS * COLUMNS)
    gate_weights = load_rows(matrix, rows, columns, COLUMNS)
    up_weights = load_rows(matrix + ROWS * COLUMNS, rows, columns, COLUMNS)
    row = normed(load_row(x, columns, COLUMNS), scale, eps, x, COLUMNS)
    tl.store(out + slot * ROWS + rows, gated(gate_weights, up_weights, row, x).to(out.dtype.element_ty))


@triton.jit
def project_experts(
    inner,
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
    """Sum the outputs of the chosen experts and the shared one by weight and add the residual: out [ROWS]."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    slots = tl.arange(0, BLOCK_CHOSEN)
    inside = (slots < CHOSEN)[:, None] & (columns < COLUMNS)[None, :]
    shared_columns = tl.arange(0, BLOCK_SHARED_COLUMNS)
    shared_weights = load_rows(shared_down, rows, shared_columns, SHARED_COLUMNS)
    # The choice is in memory: the kernel before this one has waited for it. It is loaded past the multiprocessor's L1
    # cache, which may still have the choice of another layer.
    chosen = tl.load(experts + slots, slots < CHOSEN, 0, cache_modifier=".cg").to(tl.int64)
    where = (chosen[:, None] * ROWS + rows[None, :])[:, :, None] * COLUMNS + columns[None, None, :]
    weights = tl.load(downs + where, inside[:, None, :], 0.0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    part = tl.load(shares + slots, slots < CHOSEN, 0.0).to(tl.float32)
    opened = tl.load(inner + slots[:, None] * COLUMNS + columns[None, :], inside, 0.0).to(tl.float32)
    products = rounded(tl.sum(weights.to(tl.float32) * opened[:, None, :], axis=2), out)
    routed = tl.sum(rounded(part[:, None] * products, out), axis=0)
    common = rounded(times(shared_weights, load_row(shared, shared_columns, SHARED_COLUMNS)), out)
    common = rounded(tl.load(opening).to(tl.float32) * common, out)
    before = tl.load(residual + rows).to(tl.float32)
    tl.store(out + rows, (before + rounded(rounded(routed, out) + common, out)).to(out.dtype.element_ty))


def add_experts(x: Tensor, mlp: TalkerTextSparseMoeBlock, norm: RMSNorm) -> Tensor:
    """Add the mixture of experts' output to x [1, 1, H]."""
    router, experts, shared = mlp.gate, mlp.experts, mlp.shared_expert
    count, hidden, width = experts.down_proj.shape
    gates, ups, shared_down = (part.weight for part in (shared.gate_proj, shared.up_proj, shared.down_proj))
    shared_width = len(gates)
    logits, inner_shared, opening = x.new_empty(count), x.new_empty(shared_width), x.new_empty(1)
    rows, of_router = block_rows(gates, ups), block_rows(router.weight)
    columns = next_power_of_2(hidden)
    route[(shared_width // rows + count // of_router + 1,)](
        x,
        norm.weight,
        norm.eps,
        router.weight,
        gates,
        ups,
        mlp.shared_expert_gate.weight,
        logits,
        inner_shared,
        opening,
        EXPERTS=count,
        ROWS=shared_width,
        COLUMNS=hidden,
        BLOCK_ROWS=rows,
        BLOCK_EXPERTS=of_router,
        BLOCK_COLUMNS=columns,
        **launch_options(x),
    )
    chosen, shares = x.new_empty(router.top_k, dtype=torch.int32), x.new_empty(router.top_k)
    choose_experts[(1,)](
        logits,
        chosen,
        shares,
        EXPERTS=count,
        CHOSEN=router.top_k,
        BLOCK_EXPERTS=next_power_of_2(count),
        **launch_options(x, warps=4),
    )
    inner = x.new_empty(router.top_k, width)
    rows = block_rows(experts.gate_up_proj[0, :width], experts.gate_up_proj[0, width:])
    gate_experts[width // rows, router.top_k](
        x,
        norm.weight,
        norm.eps,
        chosen,
        experts.gate_up_proj,
        inner,
        ROWS=width,
        COLUMNS=hidden,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=columns,
        **launch_options(x),
    )
    out = torch.empty_like(x)
    rows = block_rows(shared_down, *[experts.down_proj[0]] * next_power_of_2(router.top_k))
    project_experts[(hidden // rows,)](
        inner,
        chosen,
        shares,
        inner_shared,
        opening,
        experts.down_proj,
        shared_down,
        x,
        out,
        CHOSEN=router.top_k,
        ROWS=hidden,
        COLUMNS=width,
        SHARED_COLUMNS=shared_width,
        BLOCK_ROWS=rows,
        BLOCK_CHOSEN=next_power_of_2(router.top_k),
        BLOCK_COLUMNS=next_power_of_2(width),
        BLOCK_SHARED_COLUMNS=next_power_of_2(shared_width),
        **launch_options(x),
    )
    return out
