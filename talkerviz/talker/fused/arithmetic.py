"""Arithmetic that several kernels have, rounded where the layers' own code rounds."""

# ruff: noqa: N803 (what is known when a kernel is compiled is in capitals, as in Triton's own code)
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x, like):
    """x as the numbers that are left of it in the dtype of the memory `like`, in float32."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def silu(x):
    """The activation, of float32."""
    return x / (1 + tl.exp(-x))


@triton.jit
def normed(x, scale, eps, like, SIZE: tl.constexpr):
    """RMSNorm of x, float32 and zero beyond SIZE."""
    return rounded(scale * rounded(x * tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps), like), like)


@triton.jit
def times(weights, x):
    """Rows of weights [rows, columns] times x [columns], in float32."""
    return tl.sum(weights.to(tl.float32) * x[None, :], axis=1)
