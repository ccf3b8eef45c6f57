"""Inputs of models that the general factories do not cover, by model type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from talkerviz.targets.huggingface.modality_inputs import (
    colour_channels,
    grid,
    patches,
    picture_size,
    safe_tokens,
)
from talkerviz.targets.huggingface.model_spec import Inputs, ModelSpec


def _codes(spec: ModelSpec, books: int, *, last: bool, length: int | None = None) -> Tensor:
    """Draw codes of several codebooks [1, length, books], or [1, books, length] if not `last`."""
    size = spec.size("audio decoder", "audio_vocab_size", "codebook_size", "vocab_size", default=64)
    codes = spec.integers(0, min(size, 64), 1, length or spec.prompt_tokens, books)
    return codes if last else codes.transpose(1, 2)


def _picture(spec: ModelSpec, *before: int, size: tuple[int, int] | None = None) -> Tensor:
    return spec.normal(*(before or (1,)), colour_channels(spec), *(size or picture_size(spec)))


def _decision_transformer(spec: ModelSpec) -> list[Inputs]:
    states, actions, steps = spec.config.state_dim, spec.config.act_dim, 6
    return [
        {
            "states": spec.normal(1, steps, states),
            "actions": spec.normal(1, steps, actions),
            "rewards": spec.normal(1, steps, 1),
            "returns_to_go": spec.normal(1, steps, 1),
            "timesteps": torch.arange(steps)[None],
            "attention_mask": torch.ones(1, steps, dtype=torch.long),
        }
    ]


def _lxmert(spec: ModelSpec) -> list[Inputs]:
    seen = {"visual_feats": spec.normal(1, 8, spec.config.visual_feat_dim), "visual_pos": spec.normal(1, 8, 4)}
    return [{"input_ids": safe_tokens(spec), **seen}]


def _mllama(spec: ModelSpec) -> list[Inputs]:
    tiles, tokens = spec.size("vision", "max_num_tiles", default=4), safe_tokens(spec)
    if "input_ids" not in spec.names:
        return []
    return [
        {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": _picture(spec, 1, 1, tiles),
            "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(1, 1, tiles, dtype=torch.long),
            "cross_attention_mask": torch.ones(1, tokens.shape[1], 1, tiles, dtype=torch.long),
        }
    ]


def _idefics(spec: ModelSpec) -> list[Inputs]:
    tokens = safe_tokens(spec)
    seen = torch.ones(*tokens.shape, 1, dtype=torch.long)
    return [
        {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": _picture(spec, 1, 1),
            "image_attention_mask": seen,
        }
    ]


def _kosmos2(spec: ModelSpec) -> list[Inputs]:
    places = spec.size("", "latent_query_num", default=64)
    tokens = safe_tokens(spec, places + 8)
    shown = torch.zeros_like(tokens)
    shown[:, 2 : places + 2] = 1
    picture = {"pixel_values": _picture(spec), "image_embeds_position_mask": shown}
    return [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **picture}]


def _flat_patches(spec: ModelSpec) -> Tensor:
    """Draw flattened patches after their row and column, as Pix2Struct has them [1, 32, 2 + values]."""
    places = torch.cartesian_prod(torch.arange(1.0, 5), torch.arange(1.0, 9))[None]
    size = spec.field("vision", "patch_embed_hidden_size")
    side = spec.size("vision", "patch_size", default=16)
    return torch.cat([places, spec.normal(1, 32, int(size or colour_channels(spec) * side * side))], dim=-1)


def _kosmos25(spec: ModelSpec) -> list[Inputs]:
    places = spec.size("", "latent_query_num", default=2048)
    tokens = safe_tokens(spec, places + 8)
    shown = torch.zeros_like(tokens)
    shown[:, 2 : places + 2] = 1
    picture = {"flattened_patches": _flat_patches(spec), "width": torch.tensor([[4]]), "height": torch.tensor([[8]])}
    masks = {"attention_mask": torch.ones_like(tokens), "image_embeds_position_mask": shown}
    return [{"input_ids": tokens, **masks, **picture}]


def _pix2struct(spec: ModelSpec) -> list[Inputs]:
    return [{"flattened_patches": _flat_patches(spec), "decoder_input_ids": safe_tokens(spec, 4)}]


def _perceiver(spec: ModelSpec) -> list[Inputs]:
    deep = spec.normal(1, 64, spec.config.d_model)
    return [{"inputs": safe_tokens(spec)}, {"inputs": deep}, {"inputs": _picture(spec)}]


def _qformer(spec: ModelSpec) -> list[Inputs]:
    queries = {"query_embeds": spec.normal(1, 8, spec.config.hidden_size)}
    return [{**queries, "encoder_hidden_states": spec.normal(1, 16, spec.config.encoder_hidden_size)}]


def _gemma3n_audio(spec: ModelSpec) -> list[Inputs]:
    heard = spec.normal(1, 128, spec.size("", "input_feat_size", default=128))
    return [{"audio_mel": heard, "audio_mel_mask": torch.zeros(1, 128, dtype=torch.bool)}]


def _gemma4_vision(spec: ModelSpec) -> list[Inputs]:
    # 9 by 9 patches, as they are pooled three by three.
    side = spec.config.patch_size
    places = torch.cartesian_prod(torch.arange(9), torch.arange(9))[None]
    return [{"pixel_values": spec.normal(1, 81, 3 * side * side), "pixel_position_ids": places}]


def _seggpt(spec: ModelSpec) -> list[Inputs]:
    height, width = picture_size(spec)
    pictures = {name: _picture(spec, 1, size=(height // 2, width)) for name in ("pixel_values", "prompt_pixel_values")}
    return [{**pictures, "prompt_masks": _picture(spec, 1, size=(height // 2, width))}]


def _oneformer(spec: ModelSpec) -> list[Inputs]:
    return [{"pixel_values": _picture(spec), "task_inputs": spec.integers(0, 40, 1, spec.config.task_seq_len)}]


def _speecht5(spec: ModelSpec) -> list[Inputs]:
    width, bins = spec.config.hidden_size, spec.config.num_mel_bins
    return [
        {"input_values": spec.normal(1, 16, width), "decoder_input_values": spec.normal(1, 4, width)},
        {"input_ids": safe_tokens(spec), "decoder_input_values": spec.normal(1, 4, bins)},
        {"input_values": spec.normal(1, 9600), "decoder_input_ids": safe_tokens(spec, 4)},
    ]


def _two_ways_to_hear(spec: ModelSpec) -> list[Inputs]:
    wave = spec.normal(1, 1, 16000)
    width = spec.size("semantic", "feature_projection_input_dim", default=160)
    return [{"input_values": wave, "input_features": spec.normal(1, 50, width)}]


def _dia(spec: ModelSpec) -> list[Inputs]:
    tokens = spec.integers(32, 120, 1, spec.prompt_tokens)
    books = spec.size("decoder", "num_channels", default=9)
    return [{"input_ids": tokens, "decoder_input_ids": _codes(spec, books, last=True, length=4)}]


def _musicgen(spec: ModelSpec) -> list[Inputs]:
    books = spec.size("decoder", "num_codebooks", default=4)
    if "decoder_input_ids" not in spec.names:
        return [{"input_ids": _codes(spec, books, last=False)[0], "use_cache": False}]
    tokens = safe_tokens(spec, kinds="text")
    text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return [{**text, "decoder_input_ids": _codes(spec, books, last=False, length=4)[0]}]


def _moshi(spec: ModelSpec) -> list[Inputs]:
    books = spec.size("", "num_codebooks", default=8)
    codes = {name: _codes(spec, books, last=False) for name in ("user_audio_codes", "moshi_audio_codes")}
    return [{"input_ids": safe_tokens(spec), **(codes if "user_audio_codes" in spec.names else {})}]


def _kyutai(spec: ModelSpec) -> list[Inputs]:
    books = spec.size("", "num_codebooks", default=32)
    return [{"input_ids": torch.cat([safe_tokens(spec)[..., None], _codes(spec, books, last=True)], dim=-1)}]


def _csm(spec: ModelSpec) -> list[Inputs]:
    books = spec.size("", "num_codebooks", default=32)
    return [{"input_ids": _codes(spec, books + 1, last=True)}, {"input_ids": _codes(spec, books, last=True)}]


def _voxtral_realtime(spec: ModelSpec) -> list[Inputs]:
    each = spec.size("", "audio_length_per_tok", default=8)
    bins = spec.size("audio", "num_mel_bins", default=128)
    return [
        {"input_ids": safe_tokens(spec, count), "input_features": spec.normal(1, bins, each * count)}
        for count in (8, 16)
    ]


def _classes_to_find(spec: ModelSpec) -> list[Inputs]:
    words = spec.integers(1, 40, 2, 8)
    return [
        {
            "pixel_values": _picture(spec),
            "classes_input_ids": words,
            "classes_attention_mask": torch.ones_like(words),
            "tasks_input_ids": words[:1],
            "tasks_attention_mask": torch.ones_like(words[:1]),
            "classes_structure": torch.tensor([2]),
        }
    ]


def _stacked_patches(spec: ModelSpec) -> list[Inputs]:
    side, deep = spec.size("vision", "patch_size", default=14), spec.size("vision", "patch_temporal", default=1)
    return [{"pixel_values": spec.normal(int(grid(spec).prod()), 3 * deep * side * side), "grid_thw": grid(spec)}]


def _square_patches(spec: ModelSpec) -> list[Inputs]:
    side = spec.size("vision", "patch_size", default=14)
    return [{"pixel_values": spec.normal(int(grid(spec).prod()), 3, side, side), "grid_thw": grid(spec)}]


def _merged_patches(spec: ModelSpec) -> list[Inputs]:
    side = spec.size("vision", "patch_size", default=14) * spec.size("vision", "spatial_merge_size", default=2)
    return [
        {
            "pixel_values": spec.normal(16, side, side, colour_channels(spec)),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
        }
    ]


def _patches_to_merge(spec: ModelSpec) -> list[Inputs]:
    merge = torch.tensor([spec.size("", "spatial_merge_size", default=1)])
    return [{"pixel_values": patches(spec), "grid_thw": grid(spec), "merge_sizes": merge}]


def _strip_of_patches(spec: ModelSpec) -> list[Inputs]:
    side = spec.size("vision", "patch_size", default=14)
    return [{"pixel_values": spec.normal(1, 3, side, 64 * side), "target_sizes": torch.tensor([[8, 8]])}]


def _talker(spec: ModelSpec) -> list[Inputs]:
    # The thinker's text before the talker starts, and then one vector of its reply for each step.
    tokens, width = safe_tokens(spec), spec.config.embedding_size
    text = {"input_ids": tokens, "input_text_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return [
        {
            **text,
            "inputs_embeds": spec.normal(1, spec.prompt_tokens, width),
            "thinker_reply_part": spec.normal(1, 4, width),
        }
    ]


def _draft(spec: ModelSpec) -> list[Inputs]:
    # Hidden states of some layers of the target model, concatenated.
    width = spec.config.hidden_size
    noise = {"noise_embeds": spec.normal(1, 4, width)}
    return [{**noise, "context_hidden_states": spec.normal(1, 4, layers * width)} for layers in range(1, 9)]


def _pi0(spec: ModelSpec) -> list[Inputs]:
    size = spec.size("vision", "image_size", default=224)
    places = spec.size(
        "vision", "num_image_tokens", default=(size // spec.size("vision", "patch_size", default=14)) ** 2
    )
    token = spec.size("vlm", "image_token_id", "image_token_index", default=0)
    tokens = torch.cat([torch.full((1, places), token), safe_tokens(spec)], dim=1)
    shown = {
        "pixel_values": spec.normal(1, 1, 3, size, size),
        "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
    }
    text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **shown}
    acts = spec.normal(1, spec.config.chunk_size, spec.config.max_action_dim)
    return [
        {**text, "state": spec.normal(1, spec.config.max_state_dim), "noise": acts, "timestep": torch.tensor([0.5])}
    ]


def _tvp(spec: ModelSpec) -> list[Inputs]:
    tokens = safe_tokens(spec)
    side = spec.size("", "max_img_size", default=448)
    frames = spec.size("", "num_frames", default=48)
    return [
        {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": spec.normal(1, frames, 3, side, side),
        }
    ]


def _line_of_text(spec: ModelSpec) -> list[Inputs]:
    return [{"pixel_values": spec.normal(1, 3, 48, 320)}]


def _heard(features: Tensor) -> Inputs:
    return {"input_features": features, "input_features_mask": torch.ones(features.shape[:2], dtype=torch.long)}


def _stacked_bins(spec: ModelSpec) -> list[Inputs]:
    features = spec.normal(1, 64, 4 * spec.size("encoder", "num_mel_bins", default=80))
    mask = {"attention_mask": torch.ones(1, 64, dtype=torch.long)} if "attention_mask" in spec.names else {}
    return [{"input_features": features, **mask}]


def _sized(height: int, width: int) -> Callable[[ModelSpec], list[Inputs]]:
    return lambda spec: [{"pixel_values": spec.normal(1, 3, height, width)}]


def _decoded(channels: str, default: int) -> Callable[[ModelSpec], list[Inputs]]:
    return lambda spec: [{"latents": spec.normal(1, spec.size("", channels, default=default), 16)}]


SPECIAL_INPUTS: dict[str, Callable[[ModelSpec], list[Inputs]]] = {
    "blip_2_qformer": _qformer,
    "blt": lambda spec: [{"input_ids": safe_tokens(spec), "use_cache": False}],
    "csm": _csm,
    "decision_transformer": _decision_transformer,
    "depth_pro": lambda spec: [{"pixel_values": _picture(spec, size=(4 * spec.config.patch_size,) * 2)}],
    "dia": _dia,
    "gemma3n_audio": _gemma3n_audio,
    "gemma4_vision": _gemma4_vision,
    "fun_asr_nano_encoder": lambda spec: [_heard(spec.normal(1, 32, spec.size("", "input_size", default=560)))],
    "granite_speech5_ctc": _stacked_bins,
    "granite_speech5_encoder": _stacked_bins,
    "idefics": _idefics,
    "inkling2_vision": _merged_patches,
    "kimi_k25_vision": _square_patches,
    "kosmos-2": _kosmos2,
    "kosmos-2.5": _kosmos25,
    "kyutai_speech_to_text": _kyutai,
    "lxmert": _lxmert,
    "mimi_decoder": _decoded("hidden_size", 512),
    "minicpm_ocr_vision": _strip_of_patches,
    "minicpmv4_6_vision": _strip_of_patches,
    "minicpmv4_7_vision": _strip_of_patches,
    "mllama": _mllama,
    "moshi": _moshi,
    "muse_glimmer_assistant": _draft,
    "muse_glimmer_vision": _stacked_patches,
    "muse_spark_vision": _stacked_patches,
    "musicgen": _musicgen,
    "musicgen_decoder": _musicgen,
    "musicgen_melody": _musicgen,
    "musicgen_melody_decoder": _musicgen,
    "nemotron3_5_transcribe_word_timestamp": lambda spec: [
        {"inputs_embeds": spec.normal(1, 16, spec.config.hidden_size)}
    ],
    "neucodec": _two_ways_to_hear,
    "omdet-turbo": _classes_to_find,
    "oneformer": _oneformer,
    "perceiver": _perceiver,
    "pi0": _pi0,
    "pix2struct": _pix2struct,
    "pocket_tts_audio_tokenizer_decoder": _decoded("hidden_size", 512),
    "pp_ocrv5_mobile_rec": _line_of_text,
    "pp_ocrv5_server_rec": _line_of_text,
    "pp_ocrv6_small_rec": _line_of_text,
    "pp_ocrv6_tiny_rec": _line_of_text,
    "qwen2_5_omni_talker": _talker,
    "radio": lambda spec: [{"pixel_values": _picture(spec)}],
    "rf_detr": _sized(560, 560),
    "seggpt": _seggpt,
    "speech-encoder-decoder": lambda spec: [
        {"input_values": spec.normal(1, 9600), "decoder_input_ids": safe_tokens(spec, 4)}
    ],
    "speecht5": _speecht5,
    "tvp": _tvp,
    "vibevoice_acoustic_tokenizer_decoder": lambda spec: [
        {"hidden_states": spec.normal(1, spec.config.hidden_size, 8)}
    ],
    "vibevoice_acoustic_tokenizer_encoder": lambda spec: [{"hidden_states": spec.normal(1, 1, 12800)}],
    "video_llama_3_vision": _patches_to_merge,
    "voxtral_realtime": _voxtral_realtime,
    "xcodec2": _two_ways_to_hear,
}
"""Inputs tried first, by model type; most are layouts of patches, codes or spectra that one model alone has."""
