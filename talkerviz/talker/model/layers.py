"""Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def activation(name: str) -> nn.Module:
    """A new one, such as `SiLUActivation` for silu. Raises KeyError for a name that there is not."""
    # Here, since it takes a second, and who traces a model of their own needs nothing of it.
    from transformers.activations import ACT2FN

    made: nn.Module = ACT2FN[name]
    return made


def is_activation(name: object) -> bool:
    """Whether there is one of this name."""
    from transformers.activations import ACT2FN

    return isinstance(name, str) and name in ACT2FN


def argmax(logits: Tensor) -> Tensor:
    """Return the likeliest code [batch, 1] of logits [batch, vocab]."""
    return logits.argmax(dim=-1, keepdim=True)
