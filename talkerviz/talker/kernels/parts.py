"""Device functions that kernels share: loads, and arithmetic with the rounding of the layers' own code."""

# ruff: noqa: N803 (compile-time constants are in capitals, as in Triton's own code)
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_row(x, columns, COLUMNS: tl.constexpr):
    """Load x [COLUMNS] as float32, zero beyond."""
    return tl.load(x + columns, columns < COLUMNS, 0.0).to(tl.float32)


@triton.jit
def load_rows(matrix, rows, columns, COLUMNS: tl.constexpr):
    """Load rows of a matrix [..., COLUMNS] in their dtype, zero beyond."""
    return tl.load(matrix + rows[:, None] * COLUMNS + columns[None, :], (columns < COLUMNS)[None, :], 0.0)


@triton.jit
def rounded(x, like):
    """Round x to the dtype of the memory `like`; return it as float32."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def normed(x, scale, eps, like, SIZE: tl.constexpr):
    """Apply RMSNorm to x, which is float32 and zero beyond SIZE."""
    return rounded(scale * rounded(x * tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps), like), like)


@triton.jit
def times(weights, x):
    """Multiply weights [rows, columns] by x [columns] in float32."""
    return tl.sum(weights.to(tl.float32) * x[None, :], axis=1)


@triton.jit
def gated(gate_weights, up_weights, x, like):
    """Compute rows of a gated MLP's inner vector, SiLU(gate) * up, from x [columns] in float32."""
    opened = rounded(times(gate_weights, x), like)
    return rounded(opened / (1 + tl.exp(-opened)), like) * rounded(times(up_weights, x), like)
