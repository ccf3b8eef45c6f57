"""Basic layers: RMSNorm, projections, activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467).

    Statistics are computed in float32; the weight is applied after the cast back, as in training.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise [..., size]."""
        # The weight is not given to rms_norm, which would apply it before the cast.
        return self.weight * F.rms_norm(hidden_states, (hidden_states.shape[-1],), None, self.eps)


# One norm under the class names of transformers: traces have class names, and both implementations have equal traces.
class TextRMSNorm(RMSNorm):
    """RMSNorm after the decoder's layers."""


class ThinkerTextRMSNorm(RMSNorm):
    """RMSNorm inside the decoder's layers."""


class Linear(nn.Linear):
    """Projection, by default without bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Project [..., in] to [..., out]."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [..., in] by weight [out, in], and add a bias [out] if there is one: [..., out].

    One row on a CPU is bound by memory bandwidth, of which torch's matrix products reach half. Inductor's code for
    elementwise products and a sum reaches nearly all of it.
    """
    if compiles_one_row(x):
        out = times_rows(x.flatten(), weight).view(*x.shape[:-1], -1)
        return out if bias is None else out + bias
    return F.linear(x, weight, bias)


def compiles_one_row(x: Tensor) -> bool:
    """Return True if torch.compile traces for a CPU and x [..., in] is one row."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel() == x.shape[-1]


def times_rows(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Multiply weight [..., out, in] by x [in], or by one x per matrix [matrices, 1, in]: [..., out].

    An int8 weight has scales [..., out]. Sums are in float32, as those of matrix products.
    """
    # With explicit strides Inductor computes x before the loops over the weights, not again in each of them.
    x = x.as_strided(x.shape, x.stride())
    out = (x.float() * weight.float()).sum(dim=-1)
    return (out if scale is None else out * scale.float()).to(x.dtype)


_PACKED_COLUMNS = 32
"""Multiple of a weight's columns for torch's int8 product, which reads past the end of rows of other lengths."""


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply x [..., in] by an int8 weight [out, in] with scales [out]: [..., out]."""
    if compiles_one_row(x):
        return times_rows(x.flatten(), weight, scale).view(*x.shape[:-1], -1)
    # torch's int8 product of float32 takes five times as long as the product of a converted weight.
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[-1] % _PACKED_COLUMNS == 0:
        product: Tensor = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), weight, scale)
        return product.view(*x.shape[:-1], -1)
    return F.linear(x, weight.to(x.dtype)) * scale


def activation(name: str) -> nn.Module:
    """Build an activation by transformers' name, such as `SiLUActivation` for silu.

    Raises:
        KeyError: transformers has none of this name.
    """
    # Imported late: it takes a second, and traces of other models do not need it.
    from transformers.activations import ACT2FN

    module: nn.Module = ACT2FN[name]
    return module


def is_activation(name: object) -> bool:
    """Return True if transformers has an activation of this name."""
    from transformers.activations import ACT2FN

    return isinstance(name, str) and name in ACT2FN


def argmax(logits: Tensor) -> Tensor:
    """Return the likeliest code [batch, 1] of logits [batch, vocab]."""
    return logits.argmax(dim=-1, keepdim=True)
