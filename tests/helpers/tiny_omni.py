"""A tiny Qwen3-Omni of transformers, with random weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

THINKER_WIDTH = 96

# Within a vocabulary of 400; the talker's own are the published ones.
_TEXT_TOKENS = {
    "im_start_token_id": 300,
    "im_end_token_id": 301,
    "tts_pad_token_id": 302,
    "tts_bos_token_id": 303,
    "tts_eos_token_id": 304,
    "system_token_id": 305,
    "user_token_id": 306,
    "assistant_token_id": 307,
}
_MEDIA_TOKENS = {
    "audio_token_id": 308,
    "image_token_id": 309,
    "video_token_id": 310,
    "vision_start_token_id": 311,
    "audio_start_token_id": 313,
    "position_id_per_seconds": 13,
}
_STACK = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_ROPE = {"rope_type": "default", "rope_theta": 1000000}
_MROPE = {**_ROPE, "mrope_section": [4, 2, 2], "interleaved": True}


def tiny_omni_config() -> Qwen3OmniMoeConfig:
    """Its talker is that of the preset `tiny`; the rest is as small, all kinds of parts being there."""
    thinker = {
        **_MEDIA_TOKENS,
        "user_token_id": _TEXT_TOKENS["user_token_id"],
        "vision_end_token_id": 312,
        "audio_end_token_id": 314,
        "audio_config": {
            "num_mel_bins": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "d_model": 32,
            "output_dim": THINKER_WIDTH,
            "downsample_hidden_size": 8,
            "max_source_positions": 200,
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": THINKER_WIDTH,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        "text_config": {
            **_STACK,
            "vocab_size": 400,
            "hidden_size": THINKER_WIDTH,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "rope_parameters": dict(_MROPE),
        },
    }
    talker = {
        **_MEDIA_TOKENS,
        "thinker_hidden_size": THINKER_WIDTH,
        "accept_hidden_layer": 1,
        "num_code_groups": 16,
        "codec_bos_id": 2149,
        "codec_eos_token_id": 2150,
        "codec_pad_id": 2148,
        "codec_nothink_id": 2155,
        "codec_think_bos_id": 2156,
        "codec_think_eos_id": 2157,
        "spatial_merge_size": 2,
        "speaker_id": {"aiden": 2303, "chelsie": 2301, "ethan": 2302},
        "text_config": {
            **_STACK,
            "vocab_size": 3072,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "norm_topk_prob": True,
            "max_position_embeddings": 65536,
            "rope_parameters": dict(_MROPE),
        },
        "code_predictor_config": {
            **_STACK,
            "vocab_size": 2048,
            "num_code_groups": 16,
            "rope_parameters": dict(_ROPE),
        },
    }
    code2wav = {
        "codebook_size": 2048,
        "num_quantizers": 16,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "decoder_dim": 48,
        # Short, so that a few frames reach beyond it.
        "sliding_window": 8,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
    }
    return Qwen3OmniMoeConfig(thinker_config=thinker, talker_config=talker, code2wav_config=code2wav, **_TEXT_TOKENS)


def tiny_omni(seed: int = 0) -> Any:
    """Return a `Qwen3OmniMoeForConditionalGeneration`, float32, in eval mode, without gradients.

    Every parameter is random by its name and the seed, biases and norms too, so that none can stand for another; scaled
    so that codes vary from frame to frame and the sound is not silence.
    """
    model = Qwen3OmniMoeForConditionalGeneration(tiny_omni_config()).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        _fill(name, parameter, seed)
    return model


def save_tiny_omni(directory: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """`tiny_omni` saved by transformers in several shards, with config.json and index; the model itself is returned."""
    model = tiny_omni(seed).to(dtype)
    model.save_pretrained(directory, max_shard_size="2MB")
    return model


def _fill(name: str, weight: Tensor, seed: int) -> None:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    if weight.ndim == 1:
        # Factors of norms and layers are near 1, biases and the logarithms of `SnakeBeta` near 0.
        factor = name.endswith((".scale", ".gamma")) or bool(weight.eq(1).all())
        least, most = (0.5, 1.5) if factor else (-0.2, 0.2)
        weight.uniform_(least, most, generator=generator)
        return
    # Unit variance in the embeddings and after each product, as `init_weights` does.
    fan_in = 1 if "embed" in name else weight[0].numel() if "experts." not in name else weight.shape[-1]
    bound = (3 / fan_in) ** 0.5
    if name.startswith("code2wav.decoder"):
        bound *= 0.5  # its residuals add up: more would be clipped
    weight.uniform_(-bound, bound, generator=generator)
