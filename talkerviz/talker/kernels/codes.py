"""From logits to a code, and from a code to its embedding, without a break between the kernels before and after."""

# ruff: noqa: N803 (what is known when a kernel is compiled is in capitals, as in Triton's own code)
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
    """The place of the greatest of logits [COLUMNS], of equals the first: code [1]."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    columns = tl.arange(0, BLOCK_COLUMNS)
    row = tl.load(logits + columns, columns < COLUMNS, -float("inf")).to(tl.float32)
    tl.store(code, tl.argmax(row, axis=0).to(tl.int64))


@triton.jit
def embed(code, table, out, COLUMNS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, PDL: tl.constexpr):
    """The row of a table that a code [1] names: out [COLUMNS]."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    columns = tl.arange(0, BLOCK_COLUMNS)
    row = load_row(table + tl.load(code) * COLUMNS, columns, COLUMNS)
    tl.store(out + columns, row.to(out.dtype.element_ty), columns < COLUMNS)


def fused_argmax(logits: Tensor) -> Tensor:
    """Return what `argmax` does for logits [1, vocab] in one kernel."""
    if len(logits) > 1 or is_in_torch_dispatch_mode():
        return argmax(logits)
    logits = logits.contiguous()
    code, columns = torch.empty(1, 1, dtype=torch.long, device=logits.device), logits.shape[1]
    find_greatest[(1,)](
        logits, code, COLUMNS=columns, BLOCK_COLUMNS=next_power_of_2(columns), **launch_options(logits, warps=4)
    )
    return code


def fused_embedding(table: Tensor, code: Tensor) -> Tensor:
    """Of a table [codes, hidden] and a code [1, 1] its embedding [1, 1, hidden]."""
    columns = table.shape[1]
    out = table.new_empty(1, 1, columns)
    embed[(1,)](
        code, table, out, COLUMNS=columns, BLOCK_COLUMNS=next_power_of_2(columns), **launch_options(table, warps=4)
    )
    return out
