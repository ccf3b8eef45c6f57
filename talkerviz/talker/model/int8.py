"""Weight-only int8: weights of a talker's layers in 8 bits with a scale for each row, for frames on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from talkerviz.talker.model.layers import Linear, int8_linear
from talkerviz.talker.model.moe import TalkerTextExperts, TalkerTextSparseMoeBlock
from talkerviz.talker.model.talker import TalkerForConditionalGeneration

_MAX_STEP = 127  # int8 is used from -127 on, so that it is symmetric


@torch.no_grad()
def quantise_talker(talker: TalkerForConditionalGeneration) -> None:
    """Quantise the projections and experts of all layers to int8, in place; activations keep their dtype.

    Embeddings, heads, norms, routers and the gates of shared experts, 3 % of what a frame reads, keep their weights.
    Parameters keep their names; each int8 weight has scales beside it, `q_proj.weight_scale`.

    Raises:
        ValueError: the talker is not on a CPU, or its layers are compiled or fused.
    """
    check_int8_device(talker.codec_head.weight.device)
    for layer in (*talker.model.layers, *talker.code_predictor.model.layers):
        if layer._compiled_call_impl is not None or "forward" in vars(layer):
            raise ValueError("the talker's layers are compiled or fused: quantise them before")
        for parent in layer.modules():
            for name, child in list(parent.named_children()):
                # A gate has one row: its product is as fast in the dtype of the activations.
                is_gate = isinstance(parent, TalkerTextSparseMoeBlock) and name == "shared_expert_gate"
                if isinstance(child, Linear) and not is_gate:
                    setattr(parent, name, Int8Linear(child))
                elif isinstance(child, TalkerTextExperts):
                    _quantise_experts(child)


def check_int8_device(device: torch.device) -> None:
    """Check that a device runs int8 weights.

    Raises:
        ValueError: it is not a CPU.
    """
    if device.type != "cpu":
        raise ValueError(f"int8 weights are for CPUs, and the talker is on {device.type}: leave out --weights")


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight [..., out, in] to int8 steps, by the greatest value of each row.

    Returns:
        Steps of the same shape, int8, and scales [..., out] in the weight's dtype.
    """
    scale = (weight.abs().amax(dim=-1).float() / _MAX_STEP).to(weight.dtype)
    # Rows of zeros have no step of their own.
    scale = scale.clamp(min=torch.finfo(weight.dtype).tiny)
    steps = (weight.float() / scale.float()[..., None]).round().clamp(-_MAX_STEP, _MAX_STEP)
    return steps.to(torch.int8), scale


class Int8Linear(nn.Module):
    """Projection with an int8 weight [out, in], scales [out], and a bias [out] or None."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        steps, scale = quantise(linear.weight)
        self.weight = nn.Parameter(steps, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """Project [..., in] to [..., out]."""
        out = int8_linear(input, self.weight, self.weight_scale)
        return out if self.bias is None else out + self.bias


def _quantise_experts(experts: TalkerTextExperts) -> None:
    for name in ("gate_up_proj", "down_proj"):
        steps, scale = quantise(experts.get_parameter(name))
        experts.register_parameter(name, nn.Parameter(steps, requires_grad=False))
        experts.register_parameter(f"{name}_scale", nn.Parameter(scale, requires_grad=False))
