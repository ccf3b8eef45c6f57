"""Bark of Suno: three models one after the other, of semantic tokens, of two codes, and of the other six codes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.targets.families.family import Family, Fields, Speech, device_of

# suno/bark, config.json; its codec is facebook/encodec_24khz, whose sizes transformers has as defaults.
_LARGE = {"num_layers": 24, "num_heads": 16, "hidden_size": 1024, "block_size": 1024}
_TEXT_TOKENS = 119_547  # vocabulary of the tokenizer, bert-base-multilingual-cased; other ids come after them
_VOCABULARIES: Fields = {
    "semantic_config": {"input_vocab_size": 129600, "output_vocab_size": 10048, "bias": False},
    "coarse_acoustics_config": {"input_vocab_size": 12096, "output_vocab_size": 12096, "bias": False},
    "fine_acoustics_config": {
        "input_vocab_size": 1056,
        "output_vocab_size": 1056,
        "n_codes_total": 8,
        "n_codes_given": 1,
        "bias": False,
    },
}


def _preset(sizes: Fields, codec: Fields) -> Fields:
    stages = {name: {**vocabulary, **sizes} for name, vocabulary in _VOCABULARIES.items()}
    return {**stages, "codec_config": {"model_type": "encodec", **codec}}


def _build(fields: Fields, dtype: torch.dtype) -> nn.Module:
    from transformers import BarkConfig, BarkModel
    from transformers.models.bark.generation_configuration_bark import BarkGenerationConfig

    model = BarkModel._from_config(BarkConfig(**fields), dtype=dtype)
    settings = BarkGenerationConfig()
    for stage in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config"):
        setattr(settings, stage, getattr(settings, stage).to_dict())  # as generation_config.json has them
    model.generation_config = settings
    built: nn.Module = model
    return built


def _speak(model: Any, speech: Speech) -> Tensor:
    settings = model.generation_config
    rates = settings.semantic_config["semantic_rate_hz"], settings.coarse_acoustics_config["coarse_rate_hz"]
    semantic_tokens = math.ceil(speech.frames * rates[0] / rates[1])
    # The processor pads every text to one length.
    length = settings.semantic_config["max_input_semantic_length"]
    tokens = speech.tokens(_TEXT_TOKENS, device_of(model))[:, :length]
    padding = (0, length - tokens.shape[1])
    audio: Tensor = model.generate(
        nn.functional.pad(tokens, padding),
        attention_mask=nn.functional.pad(torch.ones_like(tokens), padding),
        # The end of speech is in the way of a length that is asked for.
        semantic_max_new_tokens=semantic_tokens,
        semantic_min_new_tokens=semantic_tokens,
        do_sample=False,
    )
    return audio


BARK = Family(
    name="bark",
    checkpoint="suno/bark",
    codec="EnCodec",
    frame_rate_hz=75,
    codes_a_frame=8,
    presets={
        "tiny": _preset({"num_layers": 2, "num_heads": 2, "hidden_size": 32, "block_size": 1024}, {"num_filters": 4}),
        "lite": _preset({"num_layers": 24, "num_heads": 4, "hidden_size": 128, "block_size": 1024}, {}),
        "full": _preset(_LARGE, {}),
    },
    build=_build,
    speak=_speak,
    # The coarse model gives two of a frame's codes, one a pass; the semantic model 49.9 tokens a second.
    passes={"semantic": 49.9 / 75, "coarse_acoustics": 2, "fine_acoustics.layers.0": 6 / 512},
    codec_path="codec_model",
    model_type="bark",
)
