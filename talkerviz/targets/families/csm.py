"""CSM, the Conversational Speech Model of Sesame: a backbone, and a depth decoder for the other 31 codes of a frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.targets.families.family import Family, Fields, Speech, device_of
from talkerviz.targets.families.mimi import TINY_MIMI

_CODEBOOK_SIZE = 2048  # codes of Mimi; the vocabulary has three more ids, which are no codes
_VOCABULARY = 2051
_END_OF_SPEECH = 0
# sesame/csm-1b, config.json; its codec is kyutai/mimi, whose sizes transformers has as defaults.
_FULL: Fields = {
    "num_codebooks": 32,
    "vocab_size": _VOCABULARY,
    "text_vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "depth_decoder_config": {
        "num_codebooks": 32,
        "vocab_size": _VOCABULARY,
        "backbone_hidden_size": 2048,
        "hidden_size": 1024,
        "intermediate_size": 8192,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "codec_config": {"model_type": "mimi"},
}
_LITE: Fields = {
    **_FULL,
    "text_vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "pad_token_id": 1000,
    "audio_token_id": 1000,
    "audio_eos_token_id": 1001,
    "bos_token_id": 1002,
    "depth_decoder_config": {
        **_FULL["depth_decoder_config"],
        "backbone_hidden_size": 256,
        "hidden_size": 128,
        "intermediate_size": 1024,
    },
}
_TINY: Fields = {
    **_LITE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "depth_decoder_config": {
        **_LITE["depth_decoder_config"],
        "backbone_hidden_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "codec_config": TINY_MIMI,
}


def _build(fields: Fields, dtype: torch.dtype) -> nn.Module:
    from transformers import CsmConfig, CsmForConditionalGeneration

    model: nn.Module = CsmForConditionalGeneration._from_config(CsmConfig(**fields), dtype=dtype)
    return model


def _speak(model: Any, speech: Speech) -> Tensor:
    # Text alone: random ids below those that stand for audio, in every preset.
    tokens = speech.tokens(1000, device_of(model))
    no_codes = [*range(_CODEBOOK_SIZE, model.config.vocab_size)]
    result = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=speech.frames,
        do_sample=False,
        # Random weights may give ids that are no codes, and 0 in every codebook ends the speech.
        suppress_tokens=[_END_OF_SPEECH, *no_codes],
        depth_decoder_suppress_tokens=no_codes,
        depth_decoder_do_sample=False,
        output_audio=True,
    )
    audio: Tensor = result[0]
    return audio


CSM = Family(
    name="csm",
    checkpoint="sesame/csm-1b",
    codec="Mimi",
    frame_rate_hz=12.5,
    codes_a_frame=32,
    presets={"tiny": _TINY, "lite": _LITE, "full": _FULL},
    build=_build,
    speak=_speak,
    passes={"backbone_model": 1, "depth_decoder": 31},
    codec_path="codec_model",
    model_type="csm",
)
