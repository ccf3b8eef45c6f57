"""Kernel of the decoder's rotary embedding, one in place of fourteen."""

# ruff: noqa: N803 (compile-time constants are in capitals, as in Triton's own code)
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from talkerviz.talker.kernels.launch import launch_options, next_power_of_2
from talkerviz.talker.model.rope import TalkerRotaryEmbedding


@triton.jit
def angles(
    positions,
    stride,
    frequencies,
    cos,
    sin,
    HALF: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute cos and sin [2 HALF] of one token; both halves are the same.

    `positions` are in time, height and width, `stride` apart. Every third frequency is of the height, the first HEIGHT
    of them, the next ones of the width, the first WIDTH of them, and the rest of time.
    """
    if PDL:
        gdc_launch_dependents()
    half = tl.arange(0, BLOCK_HALF)
    inside = half < HALF
    frequency = tl.load(frequencies + half, inside, 0.0)
    axis = tl.where((half % 3 == 1) & (half < 3 * HEIGHT), 1, tl.where((half % 3 == 2) & (half < 3 * WIDTH), 2, 0))
    if PDL:
        gdc_wait()
    angle = tl.load(positions + axis * stride).to(tl.float32) * frequency
    for part in tl.static_range(2):
        tl.store(cos + part * HALF + half, tl.cos(angle).to(cos.dtype.element_ty), inside)
        tl.store(sin + part * HALF + half, tl.sin(angle).to(sin.dtype.element_ty), inside)


def fused_angles(rotary: TalkerRotaryEmbedding, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin [1, 1, head_dim] in the dtype of x for one token at position_ids [3, 1, 1]."""
    half = len(rotary.inv_freq)
    cos, sin = (torch.empty(1, 1, 2 * half, dtype=x.dtype, device=x.device) for _ in range(2))
    _, height, width = rotary.mrope_section
    angles[(1,)](
        position_ids,
        position_ids.stride(0),
        rotary.inv_freq,
        cos,
        sin,
        HALF=half,
        HEIGHT=height,
        WIDTH=width,
        BLOCK_HALF=next_power_of_2(half),
        **launch_options(x, warps=1),
    )
    return cos, sin
