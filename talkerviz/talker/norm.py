"""Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scale the last dimension to unit root mean square, then by a learned weight.

    Any shape [..., size] in, the same shape and dtype out. The statistics are taken in float32; the weight is
    applied after the cast back, as the checkpoint was trained.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise [..., size]."""
        x = hidden_states.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        normed: Tensor = self.weight * x.to(hidden_states.dtype)
        return normed


# The same norm under the names transformers gives it in different places: a trace prints class names, and the
# traces of the two implementations must be equal.
class TextRMSNorm(RMSNorm):
    """RMSNorm at the end of the decoder."""


class ThinkerTextRMSNorm(RMSNorm):
    """RMSNorm inside the decoder's layers."""
