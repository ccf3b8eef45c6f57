"""Products with weights, which are most of what a frame reads from memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A projection without bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return linear(input, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] times weight [out, in]: [..., out].

    One row on a CPU is bound by memory, and torch's products get half of what memory gives. Code that Inductor makes of
    products and sums gets nearly all.
    """
    if compiles_one_row(x):
        return times_rows(x.flatten(), weight).view(*x.shape[:-1], -1)
    return F.linear(x, weight)


def compiles_one_row(x: Tensor) -> bool:
    """Whether code is being made for a CPU, and x [..., in] is one row."""
    return x.device.type == "cpu" and torch.compiler.is_compiling() and x.numel() == x.shape[-1]


def times_rows(x: Tensor, weight: Tensor) -> Tensor:
    """One x [in], or one for each matrix [matrices, 1, in], times rows [..., out, in]: [..., out].

    Sums are taken in float32, as products do.
    """
    # What a stride is given for is computed before the loops over the weights, not again in each of them.
    x = x.as_strided(x.shape, x.stride())
    return (x.float() * weight.float()).sum(dim=-1).to(x.dtype)
