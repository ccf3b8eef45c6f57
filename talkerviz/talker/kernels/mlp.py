"""Kernels of a dense layer's gated MLP, two for the whole."""

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
from talkerviz.talker.model.moe import MLP


@triton.jit
def gate(
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
    """Normalise x and compute a gated MLP's inner vector: out [TOKENS, ROWS]."""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    gate_weights = load_rows(gates, rows, columns, COLUMNS)
    up_weights = load_rows(ups, rows, columns, COLUMNS)
    scale = load_row(norm, columns, COLUMNS)
    if PDL:
        gdc_wait()
    for token in tl.static_range(TOKENS):
        row = normed(load_row(x + token * COLUMNS, columns, COLUMNS), scale, eps, x, COLUMNS)
        tl.store(out + token * ROWS + rows, gated(gate_weights, up_weights, row, x).to(out.dtype.element_ty))


@triton.jit
def project_added(
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
    """Multiply a matrix by x and add the residual: out [TOKENS, ROWS]."""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, BLOCK_COLUMNS)
    weights = load_rows(matrix, rows, columns, COLUMNS)
    if PDL:
        gdc_wait()
    for token in tl.static_range(TOKENS):
        row = load_row(x + token * COLUMNS, columns, COLUMNS)
        before = tl.load(residual + token * ROWS + rows).to(tl.float32)
        tl.store(out + token * ROWS + rows, (before + rounded(times(weights, row), x)).to(out.dtype.element_ty))


def add_mlp(x: Tensor, mlp: MLP, norm: RMSNorm) -> Tensor:
    """Add the MLP's output to x [1, S, H]."""
    gates, ups, downs = (part.weight for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    tokens, (width, hidden) = x.shape[1], gates.shape
    inner = x.new_empty(tokens, width)
    rows = block_rows(gates, ups)
    gate[(width // rows,)](
        x,
        norm.weight,
        norm.eps,
        gates,
        ups,
        inner,
        ROWS=width,
        COLUMNS=hidden,
        TOKENS=tokens,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=next_power_of_2(hidden),
        **launch_options(x),
    )
    out = torch.empty_like(x)
    rows = block_rows(downs)
    project_added[(hidden // rows,)](
        inner,
        downs,
        x,
        out,
        ROWS=hidden,
        COLUMNS=width,
        TOKENS=tokens,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=next_power_of_2(width),
        **launch_options(x),
    )
    return out
