"""Moshi of Kyutai: it speaks and listens at once, with a token of text and eight codes a frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.targets.families.family import Family, Fields, Speech, device_of
from talkerviz.targets.families.mimi import TINY_MIMI

# kmhf/hf-moshika, kyutai/moshika in transformers' format, config.json; its codec is kyutai/mimi.
_FULL: Fields = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "ffn_dim": 22528,
    "audio_vocab_size": 2048,
    "num_codebooks": 8,
    "depth_decoder_config": {
        "hidden_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "ffn_dim": 5632,
    },
    "audio_encoder_config": {"model_type": "mimi"},
}
_LITE: Fields = {
    **_FULL,
    "vocab_size": 1024,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "ffn_dim": 1408,
    "depth_decoder_config": {
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "ffn_dim": 704,
    },
}
_TINY: Fields = {
    **_LITE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "ffn_dim": 64,
    "depth_decoder_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "ffn_dim": 32,
    },
    "audio_encoder_config": TINY_MIMI,
}


def _build(fields: Fields, dtype: torch.dtype) -> nn.Module:
    from transformers import MoshiConfig, MoshiForConditionalGeneration

    # The config adds to the mapping of the depth decoder's fields.
    parts = {name: dict(value) if isinstance(value, dict) else value for name, value in fields.items()}
    model: nn.Module = MoshiForConditionalGeneration._from_config(MoshiConfig(**parts), dtype=dtype)
    return model


def _speak(model: Any, speech: Speech) -> Tensor:
    device = device_of(model)
    tokens = speech.tokens(model.config.vocab_size, device)
    # A frame has a token of text, so the prompt is of as many frames of both voices.
    shape = (2, model.num_codebooks, speech.text_tokens)
    codes = torch.randint(model.config.audio_vocab_size, shape, generator=speech.generator()).to(device)
    result = model.generate(
        input_ids=tokens,
        user_audio_codes=codes[:1],
        moshi_audio_codes=codes[1:],
        max_new_tokens=speech.frames,
        do_sample=False,
        depth_decoder_do_sample=False,
    )
    audio: Tensor = result.audio_sequences
    return audio


MOSHI = Family(
    name="moshi",
    checkpoint="kmhf/hf-moshika",
    codec="Mimi",
    frame_rate_hz=12.5,
    codes_a_frame=8,
    presets={"tiny": _TINY, "lite": _LITE, "full": _FULL},
    build=_build,
    speak=_speak,
    passes={"decoder.model": 1, "depth_decoder": 8},
    codec_path="audio_encoder",
    model_type="moshi",
)
