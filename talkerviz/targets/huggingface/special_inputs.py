"""Inputs of models that no rule fits, by model type."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from talkerviz.targets.huggingface.modality_inputs import colours, grid, patches, picture_size, safe_tokens
from talkerviz.targets.huggingface.model_spec import Ask, Inputs


def _codes(ask: Ask, books: int, *, last: bool, length: int | None = None) -> Tensor:
    """Codes of several codebooks at each place: [1, length, books], or [1, books, length]."""
    size = ask.size("audio decoder", "audio_vocab_size", "codebook_size", "vocab_size", default=64)
    codes = ask.whole(0, min(size, 64), 1, length or ask.prompt_tokens, books)
    return codes if last else codes.transpose(1, 2)


def _picture(ask: Ask, *before: int, size: tuple[int, int] | None = None) -> Tensor:
    return ask.real(*(before or (1,)), colours(ask), *(size or picture_size(ask)))


def _decision_transformer(ask: Ask) -> list[Inputs]:
    states, actions, steps = ask.config.state_dim, ask.config.act_dim, 6
    return [
        {
            "states": ask.real(1, steps, states),
            "actions": ask.real(1, steps, actions),
            "rewards": ask.real(1, steps, 1),
            "returns_to_go": ask.real(1, steps, 1),
            "timesteps": torch.arange(steps)[None],
            "attention_mask": torch.ones(1, steps, dtype=torch.long),
        }
    ]


def _lxmert(ask: Ask) -> list[Inputs]:
    seen = {"visual_feats": ask.real(1, 8, ask.config.visual_feat_dim), "visual_pos": ask.real(1, 8, 4)}
    return [{"input_ids": safe_tokens(ask), **seen}]


def _mllama(ask: Ask) -> list[Inputs]:
    tiles, tokens = ask.size("vision", "max_num_tiles", default=4), safe_tokens(ask)
    if "input_ids" not in ask.names:
        return []
    return [
        {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": _picture(ask, 1, 1, tiles),
            "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(1, 1, tiles, dtype=torch.long),
            "cross_attention_mask": torch.ones(1, tokens.shape[1], 1, tiles, dtype=torch.long),
        }
    ]


def _idefics(ask: Ask) -> list[Inputs]:
    tokens = safe_tokens(ask)
    seen = torch.ones(*tokens.shape, 1, dtype=torch.long)
    return [
        {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": _picture(ask, 1, 1),
            "image_attention_mask": seen,
        }
    ]


def _kosmos2(ask: Ask) -> list[Inputs]:
    places = ask.size("", "latent_query_num", default=64)
    tokens = safe_tokens(ask, places + 8)
    shown = torch.zeros_like(tokens)
    shown[:, 2 : places + 2] = 1
    picture = {"pixel_values": _picture(ask), "image_embeds_position_mask": shown}
    return [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **picture}]


def _flat_patches(ask: Ask) -> Tensor:
    """Patches with their row and column in front, as in Pix2Struct [1, 32, 2 + numbers]."""
    places = torch.cartesian_prod(torch.arange(1.0, 5), torch.arange(1.0, 9))[None]
    size = ask.of("vision", "patch_embed_hidden_size")
    side = ask.size("vision", "patch_size", default=16)
    return torch.cat([places, ask.real(1, 32, int(size or colours(ask) * side * side))], dim=-1)


def _kosmos25(ask: Ask) -> list[Inputs]:
    places = ask.size("", "latent_query_num", default=2048)
    tokens = safe_tokens(ask, places + 8)
    shown = torch.zeros_like(tokens)
    shown[:, 2 : places + 2] = 1
    picture = {"flattened_patches": _flat_patches(ask), "width": torch.tensor([[4]]), "height": torch.tensor([[8]])}
    masks = {"attention_mask": torch.ones_like(tokens), "image_embeds_position_mask": shown}
    return [{"input_ids": tokens, **masks, **picture}]


def _pix2struct(ask: Ask) -> list[Inputs]:
    return [{"flattened_patches": _flat_patches(ask), "decoder_input_ids": safe_tokens(ask, 4)}]


def _perceiver(ask: Ask) -> list[Inputs]:
    deep = ask.real(1, 64, ask.config.d_model)
    return [{"inputs": safe_tokens(ask)}, {"inputs": deep}, {"inputs": _picture(ask)}]


def _qformer(ask: Ask) -> list[Inputs]:
    queries = {"query_embeds": ask.real(1, 8, ask.config.hidden_size)}
    return [{**queries, "encoder_hidden_states": ask.real(1, 16, ask.config.encoder_hidden_size)}]


def _gemma3n_audio(ask: Ask) -> list[Inputs]:
    heard = ask.real(1, 128, ask.size("", "input_feat_size", default=128))
    return [{"audio_mel": heard, "audio_mel_mask": torch.zeros(1, 128, dtype=torch.bool)}]


def _gemma4_vision(ask: Ask) -> list[Inputs]:
    # 9 by 9: pooled three by three.
    side = ask.config.patch_size
    places = torch.cartesian_prod(torch.arange(9), torch.arange(9))[None]
    return [{"pixel_values": ask.real(1, 81, 3 * side * side), "pixel_position_ids": places}]


def _seggpt(ask: Ask) -> list[Inputs]:
    height, width = picture_size(ask)
    pictures = {name: _picture(ask, 1, size=(height // 2, width)) for name in ("pixel_values", "prompt_pixel_values")}
    return [{**pictures, "prompt_masks": _picture(ask, 1, size=(height // 2, width))}]


def _oneformer(ask: Ask) -> list[Inputs]:
    return [{"pixel_values": _picture(ask), "task_inputs": ask.whole(0, 40, 1, ask.config.task_seq_len)}]


def _speecht5(ask: Ask) -> list[Inputs]:
    width, bins = ask.config.hidden_size, ask.config.num_mel_bins
    return [
        {"input_values": ask.real(1, 16, width), "decoder_input_values": ask.real(1, 4, width)},
        {"input_ids": safe_tokens(ask), "decoder_input_values": ask.real(1, 4, bins)},
        {"input_values": ask.real(1, 9600), "decoder_input_ids": safe_tokens(ask, 4)},
    ]


def _two_ways_to_hear(ask: Ask) -> list[Inputs]:
    wave = ask.real(1, 1, 16000)
    width = ask.size("semantic", "feature_projection_input_dim", default=160)
    return [{"input_values": wave, "input_features": ask.real(1, 50, width)}]


def _dia(ask: Ask) -> list[Inputs]:
    tokens = ask.whole(32, 120, 1, ask.prompt_tokens)
    books = ask.size("decoder", "num_channels", default=9)
    return [{"input_ids": tokens, "decoder_input_ids": _codes(ask, books, last=True, length=4)}]


def _musicgen(ask: Ask) -> list[Inputs]:
    books = ask.size("decoder", "num_codebooks", default=4)
    if "decoder_input_ids" not in ask.names:
        return [{"input_ids": _codes(ask, books, last=False)[0], "use_cache": False}]
    tokens = safe_tokens(ask, kinds="text")
    text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return [{**text, "decoder_input_ids": _codes(ask, books, last=False, length=4)[0]}]


def _moshi(ask: Ask) -> list[Inputs]:
    books = ask.size("", "num_codebooks", default=8)
    codes = {name: _codes(ask, books, last=False) for name in ("user_audio_codes", "moshi_audio_codes")}
    return [{"input_ids": safe_tokens(ask), **(codes if "user_audio_codes" in ask.names else {})}]


def _kyutai(ask: Ask) -> list[Inputs]:
    books = ask.size("", "num_codebooks", default=32)
    return [{"input_ids": torch.cat([safe_tokens(ask)[..., None], _codes(ask, books, last=True)], dim=-1)}]


def _csm(ask: Ask) -> list[Inputs]:
    books = ask.size("", "num_codebooks", default=32)
    return [{"input_ids": _codes(ask, books + 1, last=True)}, {"input_ids": _codes(ask, books, last=True)}]


def _voxtral_realtime(ask: Ask) -> list[Inputs]:
    each = ask.size("", "audio_length_per_tok", default=8)
    bins = ask.size("audio", "num_mel_bins", default=128)
    return [
        {"input_ids": safe_tokens(ask, count), "input_features": ask.real(1, bins, each * count)} for count in (8, 16)
    ]


def _classes_to_find(ask: Ask) -> list[Inputs]:
    words = ask.whole(1, 40, 2, 8)
    return [
        {
            "pixel_values": _picture(ask),
            "classes_input_ids": words,
            "classes_attention_mask": torch.ones_like(words),
            "tasks_input_ids": words[:1],
            "tasks_attention_mask": torch.ones_like(words[:1]),
            "classes_structure": torch.tensor([2]),
        }
    ]


def _stacked_patches(ask: Ask) -> list[Inputs]:
    side, deep = ask.size("vision", "patch_size", default=14), ask.size("vision", "patch_temporal", default=1)
    return [{"pixel_values": ask.real(int(grid(ask).prod()), 3 * deep * side * side), "grid_thw": grid(ask)}]


def _square_patches(ask: Ask) -> list[Inputs]:
    side = ask.size("vision", "patch_size", default=14)
    return [{"pixel_values": ask.real(int(grid(ask).prod()), 3, side, side), "grid_thw": grid(ask)}]


def _merged_patches(ask: Ask) -> list[Inputs]:
    side = ask.size("vision", "patch_size", default=14) * ask.size("vision", "spatial_merge_size", default=2)
    return [{"pixel_values": ask.real(16, side, side, colours(ask)), "image_grid_thw": torch.tensor([[1, 4, 4]])}]


def _patches_to_merge(ask: Ask) -> list[Inputs]:
    merge = torch.tensor([ask.size("", "spatial_merge_size", default=1)])
    return [{"pixel_values": patches(ask), "grid_thw": grid(ask), "merge_sizes": merge}]


def _strip_of_patches(ask: Ask) -> list[Inputs]:
    side = ask.size("vision", "patch_size", default=14)
    return [{"pixel_values": ask.real(1, 3, side, 64 * side), "target_sizes": torch.tensor([[8, 8]])}]


def _talker(ask: Ask) -> list[Inputs]:
    # What a thinker said: its text before the talker begins, and what follows, a vector a step.
    tokens, width = safe_tokens(ask), ask.config.embedding_size
    text = {"input_ids": tokens, "input_text_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return [
        {**text, "inputs_embeds": ask.real(1, ask.prompt_tokens, width), "thinker_reply_part": ask.real(1, 4, width)}
    ]


def _draft(ask: Ask) -> list[Inputs]:
    # States of some of the layers of the model that is to be guessed, side by side.
    width = ask.config.hidden_size
    noise = {"noise_embeds": ask.real(1, 4, width)}
    return [{**noise, "context_hidden_states": ask.real(1, 4, layers * width)} for layers in range(1, 9)]


def _pi0(ask: Ask) -> list[Inputs]:
    size = ask.size("vision", "image_size", default=224)
    places = ask.size("vision", "num_image_tokens", default=(size // ask.size("vision", "patch_size", default=14)) ** 2)
    token = ask.size("vlm", "image_token_id", "image_token_index", default=0)
    tokens = torch.cat([torch.full((1, places), token), safe_tokens(ask)], dim=1)
    shown = {"pixel_values": ask.real(1, 1, 3, size, size), "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}
    text = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **shown}
    acts = ask.real(1, ask.config.chunk_size, ask.config.max_action_dim)
    return [{**text, "state": ask.real(1, ask.config.max_state_dim), "noise": acts, "timestep": torch.tensor([0.5])}]


def _tvp(ask: Ask) -> list[Inputs]:
    tokens = safe_tokens(ask)
    side = ask.size("", "max_img_size", default=448)
    frames = ask.size("", "num_frames", default=48)
    return [
        {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": ask.real(1, frames, 3, side, side),
        }
    ]


def _line_of_text(ask: Ask) -> list[Inputs]:
    return [{"pixel_values": ask.real(1, 3, 48, 320)}]


def _heard(features: Tensor) -> Inputs:
    return {"input_features": features, "input_features_mask": torch.ones(features.shape[:2], dtype=torch.long)}


def _stacked_bins(ask: Ask) -> list[Inputs]:
    features = ask.real(1, 64, 4 * ask.size("encoder", "num_mel_bins", default=80))
    mask = {"attention_mask": torch.ones(1, 64, dtype=torch.long)} if "attention_mask" in ask.names else {}
    return [{"input_features": features, **mask}]


def _sized(height: int, width: int) -> Callable[[Ask], list[Inputs]]:
    return lambda ask: [{"pixel_values": ask.real(1, 3, height, width)}]


def _decoded(channels: str, default: int) -> Callable[[Ask], list[Inputs]]:
    return lambda ask: [{"latents": ask.real(1, ask.size("", channels, default=default), 16)}]


PARTICULAR: dict[str, Callable[[Ask], list[Inputs]]] = {
    "blip_2_qformer": _qformer,
    "blt": lambda ask: [{"input_ids": safe_tokens(ask), "use_cache": False}],
    "csm": _csm,
    "decision_transformer": _decision_transformer,
    "depth_pro": lambda ask: [{"pixel_values": _picture(ask, size=(4 * ask.config.patch_size,) * 2)}],
    "dia": _dia,
    "gemma3n_audio": _gemma3n_audio,
    "gemma4_vision": _gemma4_vision,
    "fun_asr_nano_encoder": lambda ask: [_heard(ask.real(1, 32, ask.size("", "input_size", default=560)))],
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
    "nemotron3_5_transcribe_word_timestamp": lambda ask: [{"inputs_embeds": ask.real(1, 16, ask.config.hidden_size)}],
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
    "radio": lambda ask: [{"pixel_values": _picture(ask)}],
    "rf_detr": _sized(560, 560),
    "seggpt": _seggpt,
    "speech-encoder-decoder": lambda ask: [
        {"input_values": ask.real(1, 9600), "decoder_input_ids": safe_tokens(ask, 4)}
    ],
    "speecht5": _speecht5,
    "tvp": _tvp,
    "vibevoice_acoustic_tokenizer_decoder": lambda ask: [{"hidden_states": ask.real(1, ask.config.hidden_size, 8)}],
    "vibevoice_acoustic_tokenizer_encoder": lambda ask: [{"hidden_states": ask.real(1, 1, 12800)}],
    "video_llama_3_vision": _patches_to_merge,
    "voxtral_realtime": _voxtral_realtime,
    "xcodec2": _two_ways_to_hear,
}
"""What is tried first of these types; most are of one author's layout of patches, codes or spectra."""
