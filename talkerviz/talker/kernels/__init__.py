"""Fused Triton kernels for the talker's layers: one stream on a GPU, bound by the memory bandwidth of the weights.

A dense layer is five kernels, one with experts seven. Each loads its weights before it waits for the output of the
kernel before it: with programmatic dependent launch these loads overlap with that kernel. Values are rounded where the
layers' own code rounds them; sums are in another order.

In all kernels PDL is True for programmatic dependent launch, TOKENS is the number of rows of x, and BLOCK_* are powers
of 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import nn

from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.talker import TalkerForConditionalGeneration


def fuse_talker(talker: TalkerForConditionalGeneration) -> None:
    """Replace the layers and the modules between them by fused kernels, in place; the module tree does not change.

    The kernels run a frame of one stream; prompts and batches run as before. In float32 the codes do not change. In
    bfloat16 values are rounded at the same places, and sums are in another order.

    Raises:
        ValueError: as `check_kernels`, or the talker is compiled.
    """
    check_kernels(talker.codec_head.weight.device, talker.config)
    if talker.acceleration.compiled:
        raise ValueError("the talker's layers are compiled, which makes other kernels of them: compile it or fuse it")
    fuse_modules(talker)


def check_kernels(device: torch.device, config: TalkerConfig) -> None:
    """Check that the kernels run on a device and implement a config.

    Raises:
        ValueError: the device is not CUDA, an activation is not SiLU, attention has biases, the router's weights are
            not normalised, or Triton is missing.
    """
    if device.type != "cuda":
        raise ValueError(f"fused kernels need a CUDA device, and the talker is on {device.type}: leave out --fused")
    if others := {config.text.hidden_act, config.code_predictor.hidden_act} - {"silu"}:
        raise ValueError(f"fused kernels have silu, and the talker's hidden_act is {others.pop()}: leave out --fused")
    if config.text.attention_bias or config.code_predictor.attention_bias:
        raise ValueError("fused kernels have no biases, and the talker's attention_bias is true: leave out --fused")
    if not config.text.norm_topk_prob:
        raise ValueError("fused kernels normalise expert weights, and norm_topk_prob is false: leave out --fused")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ValueError("fused kernels need Triton, which torch for CUDA brings: pip install triton") from error


def fuse_modules(talker: TalkerForConditionalGeneration) -> None:
    """Do what `fuse_talker` does on any device: on a CPU for Triton's interpreter."""
    from talkerviz.talker.kernels.layer import (
        angles_forward,
        embedding_forward,
        head_forward,
        known_angles_forward,
        layer_forward,
        norm_forward,
        predictor_forward,
    )

    predictor = talker.code_predictor
    for layer in (*talker.model.layers, *predictor.model.layers):
        _replace(layer, layer_forward)
    for norm in (talker.model.norm, predictor.model.norm):
        _replace(norm, norm_forward)
    for head in (talker.codec_head, *predictor.lm_head):
        _replace(head, head_forward)
    for embedding in (talker.model.codec_embedding, *predictor.model.codec_embedding):
        _replace(embedding, embedding_forward)
    talker.acceleration = replace(talker.acceleration, fused=True)
    like, rotary = talker.codec_head.weight, predictor.model.rotary_emb
    positions = torch.arange(talker.config.num_code_groups, device=like.device)[None]
    angles = rotary(like, positions)
    _replace(predictor.model, predictor_forward(positions))
    _replace(rotary, known_angles_forward(angles))
    _replace(talker.model.rotary_emb, angles_forward)


def _replace(module: nn.Module, forward: Callable[..., Any]) -> None:
    vars(module)["forward"] = MethodType(forward, module)
