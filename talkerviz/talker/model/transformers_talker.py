"""transformers' implementation of the talker, built from the same config."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.rope import rope_frequencies


def transformers_talker(config: TalkerConfig) -> nn.Module:
    """Build transformers' `Qwen3OmniMoeTalkerForConditionalGeneration` on the default device."""
    from transformers import Qwen3OmniMoeTalkerConfig, Qwen3OmniMoeTalkerForConditionalGeneration

    fields = asdict(config)
    text, code_predictor = fields.pop("text"), fields.pop("code_predictor")
    fields["text_config"] = _rope(text)
    fields["code_predictor_config"] = _rope(code_predictor)
    with silenced():
        # transformers reads spatial_merge_size, which is for images, but has no default for it.
        talker: nn.Module = Qwen3OmniMoeTalkerForConditionalGeneration._from_config(
            Qwen3OmniMoeTalkerConfig(**fields, spatial_merge_size=2)
        )
    return talker


def _rope(stack: dict[str, Any]) -> dict[str, Any]:
    """Move a stack's rotary settings into `rope_parameters`, where transformers 5 reads them."""
    rope = {"rope_type": "default", "rope_theta": stack.pop("rope_theta")}
    if "mrope_section" in stack:
        rope |= {"mrope_section": list(stack.pop("mrope_section")), "interleaved": True}
    return {**stack, "rope_parameters": rope}


def reset_rope_buffers(talker: Any, config: TalkerConfig, device: torch.device) -> None:
    """Compute the rotary frequencies anew, as `RotaryEmbedding.reset_buffers` does for the native talker."""
    stacks = ((talker.model, config.text), (talker.code_predictor.model, config.code_predictor))
    for model, stack in stacks:
        rotary = model.rotary_emb
        rotary.inv_freq = rope_frequencies(stack, device)
        rotary.original_inv_freq = rotary.inv_freq.clone()


# Warnings of the checkpoint's own rope keys, which transformers does not know, and of no pad token, which a batch
# of one does not need.
_NOISE = ("Unrecognized keys in `rope_parameters`", "Setting `pad_token_id` to `eos_token_id`")


def _not_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)


@contextmanager
def silenced() -> Iterator[None]:
    """Drop transformers' log records listed in `_NOISE`."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_rope_utils", "generation.utils")]
    for logger in loggers:
        logger.addFilter(_not_noise)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_not_noise)
