"""Kernels of argmax and embedding, which overlap with the kernels before and after as torch's do not."""

# ruff: noqa: N803 (compile-time constants are in capitals, as in Triton's own code)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from talkerviz.talker.kernels.launch import launch_options, next_power_of_2
from talkerviz.talker.kernels.parts import load_row
from talkerviz.talker.model.layers import argmax


@triton.jit
def find_greatest(logits, code, COLUMNS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, PDL: tl.constexpr):
    """Find the index of the greatest of logits [COLUMNS], of equals the first: code [1]."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    columns = tl.arange(0, BLOCK_COLUMNS)
    row = tl.load(logits + columns, columns < COLUMNS, -float("inf")).to(tl.float32)
    tl.store(code, tl.argmax(row, axis=0).to(tl.int64))


@triton.jit
def embed(code, table, out, COLUMNS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, PDL: tl.constexpr):
    """Copy row `code` [1] of a table: out [COLUMNS]."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    columns = tl.arange(0, BLOCK_COLUMNS)
    row = load_row(table + tl.load(code) * COLUMNS, columns, COLUMNS)
    tl.store(out + columns, row.to(out.dtype.element_ty), columns < COLUMNS)


def fused_argmax(logits: Tensor) -> Tensor:
    """Return the likeliest code [1, 1] of logits [1, V] in one kernel; otherwise as `argmax`."""
    if len(logits) > 1 or is_in_torch_dispatch_mode():
        return argmax(logits)
    logits = logits.contiguous()
    code, columns = torch.empty(1, 1, dtype=torch.long, device=logits.device), logits.shape[1]
    find_greatest[(1,)](
        logits, code, COLUMNS=columns, BLOCK_COLUMNS=next_power_of_2(columns), **launch_options(logits, warps=4)
    )
    return code


def fused_embedding(table: Tensor, code: Tensor) -> Tensor:
    """Look up the embedding [1, 1, H] of a code [1, 1] in a table [V, H]."""
    columns = table.shape[1]
    out = table.new_empty(1, 1, columns)
    embed[(1,)](
        code, table, out, COLUMNS=columns, BLOCK_COLUMNS=next_power_of_2(columns), **launch_options(table, warps=4)
    )
    return out
