"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), with one and with three axes.

Shapes: B rows, S tokens, D head_dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from talkerviz.talker.model.config import TextConfig


class RopeConfig(Protocol):
    """Config of a stack of layers with rotary embeddings."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""

    @property
    def rope_theta(self) -> float:
        """Base of the frequencies."""


def rope_frequencies(config: RopeConfig, device: torch.device) -> Tensor:
    """Return each channel pair's radians per position [D / 2], float32, falling from 1 to about 1 / theta."""
    # Computed on the CPU, so that every device has the same angles.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
    return (1.0 / config.rope_theta**exponents).to(device)


class RotaryEmbedding(nn.Module):
    """Rotary embedding of the code predictor and of code2wav: one position per token."""

    inv_freq: Tensor

    def __init__(self, config: RopeConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("inv_freq", None, persistent=False)
        self.reset_buffers(torch.get_default_device())

    def reset_buffers(self, device: torch.device) -> None:
        """Recompute the frequencies in float32.

        Needed after `to_empty`, and after a cast of the module to bfloat16, which has too few bits for them.
        """
        self.inv_freq = rope_frequencies(self.config, device)

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [B, S, D] of positions [B, S], in the dtype of hidden_states."""
        angles = self.angles(position_ids)  # [B, S, D / 2]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(hidden_states.dtype), angles.sin().to(hidden_states.dtype)

    def angles(self, position_ids: Tensor) -> Tensor:
        """Return angles in radians [..., S, D / 2]."""
        return position_ids[..., None].float() * self.inv_freq


class TalkerRotaryEmbedding(RotaryEmbedding):
    """Rotary embedding of the decoder: positions [3, B, S] in time, height and width.

    The three axes are interleaved over the frequencies, T H W T H W ..., until height and width have their share
    (`mrope_section`); time has the rest (Qwen3-Omni, arXiv:2509.17765).
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.mrope_section = config.mrope_section

    def angles(self, position_ids: Tensor) -> Tensor:
        """Return angles in radians [B, S, D / 2]."""
        time: Tensor
        time, *space = super().angles(position_ids)
        for axis, angles in enumerate(space, start=1):
            frequencies = slice(axis, 3 * self.mrope_section[axis], 3)
            time[..., frequencies] = angles[..., frequencies]
        return time


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads x [B, heads, S, D] by angles with cos and sin [B, S, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)
