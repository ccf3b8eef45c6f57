"""Ways to speed up the native talker, and the checks of what they need."""

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
    """Ways in which a talker is sped up; none by default.

    Attributes:
        compiled: compile the layers with torch.compile, see `compile_talker`.
        fused: run each layer as a few Triton kernels, see `fuse_talker`.
        graphs: replay a CUDA graph for each frame, see `replay_frames`.
    """

    compiled: bool = False
    fused: bool = False
    graphs: bool = False

    def enabled(self) -> list[str]:
        """Return the names of the enabled fields."""
        return [field.name for field in fields(self) if getattr(self, field.name)]

    def check(self, device: torch.device, config: TalkerConfig) -> None:
        """Check, before weights are read, that the enabled ways go together and run on a device.

        Raises:
            ValueError: they do not.
        """
        if self.compiled and self.fused:
            raise ValueError("--fused: --compile makes other code of the same layers; give one of them")
        if self.fused:
            check_kernels(device, config)
        if self.graphs:
            check_device(device)

    def apply(self, talker: TalkerForConditionalGeneration) -> None:
        """Speed up a talker in place.

        Raises:
            ValueError: as `check`, and torch.compile finds no C++ compiler.
        """
        if self.compiled:
            compile_talker(talker)
        if self.fused:
            fuse_talker(talker)
        if self.graphs:
            replay_frames(talker)
