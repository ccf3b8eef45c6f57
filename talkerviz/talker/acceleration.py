"""What makes a talker fast, and when it can be had."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from talkerviz.talker.generation.compile import compile_talker
from talkerviz.talker.generation.cuda_graphs import check_device, replay_frames
from talkerviz.talker.kernels import check_kernels, fuse_talker
from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.talker import TalkerForConditionalGeneration


@dataclass(frozen=True)
class Acceleration:
    """How a talker is made fast; not at all by default.

    Attributes:
        compiled: torch.compile makes code of its layers, see `compile_talker`.
        fused: its layers run as few kernels, see `fuse_talker`.
        graphs: it speaks by replaying a CUDA graph, see `replay_frames`.
    """

    compiled: bool = False
    fused: bool = False
    graphs: bool = False

    def enabled(self) -> list[str]:
        """Those that are wanted, by their names here."""
        return [field.name for field in fields(self) if getattr(self, field.name)]

    def check(self, device: torch.device, config: TalkerConfig) -> None:
        """Raises ValueError for what cannot be had there, or not together, as `make` does: before weights are read."""
        if self.compiled and self.fused:
            raise ValueError("--fused: --compile makes other code of the same layers; give one of them")
        if self.fused:
            check_kernels(device, config)
        if self.graphs:
            check_device(device)

    def apply(self, talker: TalkerForConditionalGeneration) -> None:
        """Make a talker so, in place. Raises ValueError where it cannot be."""
        if self.compiled:
            compile_talker(talker)
        if self.fused:
            fuse_talker(talker)
        if self.graphs:
            replay_frames(talker)
