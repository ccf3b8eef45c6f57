"""Kernels of RMSNorm and of projections by up to three matrices."""

# ruff: noqa: N803 (compile-time constants are in capitals, as in Triton's own code)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from talkerviz.talker.kernels.launch import block_rows, launch_options, next_power_of_2
from talkerviz.talker.kernels.parts import load_row, load_rows, normed, times
from talkerviz.talker.model.layers import RMSNorm


@triton.jit
def project(
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
    """Normalise x and multiply three matrices by it: out [TOKENS, FIRST + SECOND + THIRD]."""
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
    weights = load_rows(matrix, rows - skipped, columns, COLUMNS)
    if NORMED:
        scale = load_row(norm, columns, COLUMNS)
    if PDL:
        gdc_wait()
    for token in tl.static_range(TOKENS):
        row = load_row(x + token * COLUMNS, columns, COLUMNS)
        if NORMED:
            row = normed(row, scale, eps, x, COLUMNS)
        tl.store(out + token * (FIRST + SECOND + THIRD) + rows, times(weights, row).to(out.dtype.element_ty))


@triton.jit
def normalise(x, norm, eps, out, COLUMNS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, PDL: tl.constexpr):
    """Apply RMSNorm to rows, one for each program: out [rows, COLUMNS]."""
    if PDL:
        gdc_launch_dependents()
    columns = tl.arange(0, BLOCK_COLUMNS)
    scale = load_row(norm, columns, COLUMNS)
    if PDL:
        gdc_wait()
    start = tl.program_id(0) * COLUMNS
    row = normed(load_row(x + start, columns, COLUMNS), scale, eps, x, COLUMNS)
    tl.store(out + start + columns, row.to(out.dtype.element_ty), columns < COLUMNS)


def project_rows(x: Tensor, weights: list[Tensor], norm: RMSNorm | None = None) -> Tensor:
    """Normalise x [1, S, H] and multiply up to three matrices [rows, H] by it: [1, S, all rows]."""
    sizes = [*map(len, weights), 0, 0][:3]
    out = x.new_empty(1, x.shape[1], sum(sizes))
    rows = block_rows(*weights, at_once=1)
    project[(sum(sizes) // rows,)](
        x,
        weights[0] if norm is None else norm.weight,
        0.0 if norm is None else norm.eps,
        weights[0],
        weights[min(1, len(weights) - 1)],
        weights[-1],
        out,
        FIRST=sizes[0],
        SECOND=sizes[1],
        THIRD=sizes[2],
        COLUMNS=x.shape[2],
        NORMED=norm is not None,
        TOKENS=x.shape[1],
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=next_power_of_2(x.shape[2]),
        **launch_options(x),
    )
    return out


def normalise_rows(x: Tensor, norm: RMSNorm) -> Tensor:
    """Apply RMSNorm to x [1, S, H]."""
    out, columns = torch.empty_like(x), x.shape[2]
    normalise[(x.shape[1],)](
        x, norm.weight, norm.eps, out, COLUMNS=columns, BLOCK_COLUMNS=next_power_of_2(columns), **launch_options(x)
    )
    return out
