"""What several kernels are made of: loads, and arithmetic that is rounded where the layers' own code rounds."""

# ruff: noqa: N803 (what is known when a kernel is compiled is in capitals, as in Triton's own code)
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_row(x, columns, COLUMNS: tl.constexpr):
    """x [COLUMNS] in float32, and zero beyond."""
    return tl.load(x + columns, columns < COLUMNS, 0.0).to(tl.float32)


@triton.jit
def load_rows(matrix, rows, columns, COLUMNS: tl.constexpr):
    """Rows of a matrix [..., COLUMNS] as they are, and zero beyond."""
    return tl.load(matrix + rows[:, None] * COLUMNS + columns[None, :], (columns < COLUMNS)[None, :], 0.0)


@triton.jit
def rounded(x, like):
    """x as the numbers that are left of it in the dtype of the memory `like`, in float32."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def normed(x, scale, eps, like, SIZE: tl.constexpr):
    """RMSNorm of x, float32 and zero beyond SIZE."""
    return rounded(scale * rounded(x * tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps), like), like)


@triton.jit
def times(weights, x):
    """Rows of weights [rows, columns] times x [columns], in float32."""
    return tl.sum(weights.to(tl.float32) * x[None, :], axis=1)


@triton.jit
def gated(gate_weights, up_weights, x, like):
    """Rows of the first half of a gated MLP, with SiLU, from x [columns], in float32."""
    opened = rounded(times(gate_weights, x), like)
    return rounded(opened / (1 + tl.exp(-opened)), like) * rounded(times(up_weights, x), like)
