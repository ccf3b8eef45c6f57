"""Speeding up the native talker, and the checks of what each way needs."""

from __future__ import annotations

import torch

from talkerviz.talker.generation.compile import compile_talker
from talkerviz.talker.generation.cuda_graphs import check_device, replay_frames
from talkerviz.talker.kernels import check_kernels, fuse_talker
from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.talker import Acceleration, TalkerForConditionalGeneration


def check_acceleration(acceleration: Acceleration, device: torch.device, config: TalkerConfig) -> None:
    """Check, before weights are read, that the enabled ways go together and run on a device.

    Raises:
        ValueError: they do not.
    """
    if acceleration.compiled and acceleration.fused:
        raise ValueError("--fused: --compile makes other code of the same layers; give one of them")
    if acceleration.fused:
        check_kernels(device, config)
    if acceleration.graphs:
        check_device(device)


def accelerate(talker: TalkerForConditionalGeneration, acceleration: Acceleration) -> None:
    """Speed up a talker in place.

    Raises:
        ValueError: as `check_acceleration`, and torch.compile finds no C++ compiler.
    """
    if acceleration.compiled:
        compile_talker(talker)
    if acceleration.fused:
        fuse_talker(talker)
    if acceleration.graphs:
        replay_frames(talker)
