"""Small configs of any model of transformers, derived from its default config."""

from __future__ import annotations

import math
import re
from typing import Any

TRIES = ((16, 2), (8, 2), (4, 2), (2, 2), (1, 2), (16, 4), (8, 4), (8, 9), (2, 9), (0, 0))
"""Divisor of widths and least number of layers, tried in turn until a model runs; 0 keeps the default config."""

_WIDTH = re.compile(
    r"(hidden|intermediate|(?<!image_)embed\w*|inner|ffn|mlp|proj\w*|output|model|ff|feedforward\w*|attention|encoder"
    r"|decoder|n_embd|d_model|d_ff|vision|text)_?(hidden_)?(size|dim|dims)$"
    r"|^n_embd$|^d_model$|^d_ff$|^dim$|^n_inner$|^emb_dim$|^embed_dim$|ffn_dim$|^hidden_size_global$|^mm_hidden_size$"
    r"|^adapter_\w*(dim|size)$|^mamba_headdim$|^mamba_d_ssm$|^output_channels$|^num_pos_feats$|^vit_dim$"
)
_HEADS = re.compile(
    r"^(num_\w*heads|n_heads?|\w*attention_heads|\w*num_key_value_heads|num_kv_heads|mamba_n_heads"
    r"|swa_num_\w+heads|index_n_heads)$"
)
_DEPTH = re.compile(
    r"^(num_(hidden_|encoder_|decoder_|text_|vision_|fusion_)?layers|n_layers?|\w*_layers|depth|num_blocks"
    r"|\w+_num_layers|layers|num_\w+_blocks|num_encoder_blocks)$"
)
_EXPERTS = re.compile(
    r"^(num_experts|n_routed_experts|num_local_experts|moe_num_experts|num_routed_experts|ffn_num_experts)$"
)
_PLACES = re.compile(r"(indices|indexes|index|idx|layers?_ids?|_layers|layer_ids|_levels|_blocks)$")


_EMU_WORDS = {"<image>": 4, "<|extra_200809|>": 5, **{f"<|visual token {code:06d}|>": 10 + code for code in range(64)}}
_FORECAST = {"prediction_length": 8}
_PICTURE_WORDS = {f"IMGIMG{chr(65 + code // 26)}{chr(65 + code % 26)}Z": 10 + code for code in range(64)}
_GLM_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
_HUNYUAN_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 16, 16, 16]}
_EACH_ROPE = {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")}
_INDEXER_SIZES = {"n_heads": 4, "kv_heads": 1, "head_dim": 256, "budget": 64, "compress_ratio": 4}
_INDEXER = {f"indexer_{name}": size for name, size in _INDEXER_SIZES.items()}


MADE_WITH: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}
HINTS: dict[str, dict[str, Any]] = {
    "autoformer": _FORECAST,
    "blip-2": {"image_token_id": 4},
    "aya_vision": {"vision_config": {"num_attention_heads": 16}},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 1000, "patcher_config": {"num_attention_heads": 16, "head_dim": 48}},
    "chameleon": {"vocabulary_map": {"<image>": 4, **_PICTURE_WORDS}},
    "chmv2": {"post_process_channels": [16, 32, 64, 128]},
    "clvp": {
        "text_config": {"num_attention_heads": 16},
        "speech_config": {"num_attention_heads": 16, "vocab_size": 8194},
    },
    "cohere_compass": {"text_config": {"rope_parameters": _EACH_ROPE}},
    "cohere_compass_text": {"rope_parameters": _EACH_ROPE},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_ocr2": {
        "vision_config": {"sam_config": {"num_attention_heads": 16, "downsample_channels": [512, 256]}},
        "text_config": {
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 1408,
            "mlp_layer_types": ["dense"] + ["sparse"] * 31,
        },
    },
    "deepseek_v2": {
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 2,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
    },
    "depth_pro": {
        "intermediate_hook_ids": [1, 0],
        "patch_size": 56,
        **{f"{part}_model_config": {"image_size": 56} for part in ("image", "patch", "fov")},
    },
    "diffusion_gemma": {
        "canvas_length": 16,
        "text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 256},
    },
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "emu3": {"vocabulary_map": _EMU_WORDS, "vq_config": {"codebook_size": 64, "base_channels": 32}},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma3": {"mm_tokens_per_image": 49},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4v": {"text_config": {"rope_parameters": _GLM_ROPE}},
    "glm46v": {"text_config": {"rope_parameters": _GLM_ROPE}},
    "glmga": {"text_config": {"rope_parameters": _GLM_ROPE}},
    "glm4v_moe": {"text_config": {"rope_parameters": _GLM_ROPE, "head_dim": 128}},
    "glm4v_moe_text": {"rope_parameters": _GLM_ROPE, "head_dim": 128},
    "glm4v_text": {"rope_parameters": _GLM_ROPE},
    "glm_image": {"text_config": {"rope_parameters": _GLM_ROPE}},
    "glm_image_text": {"rope_parameters": _GLM_ROPE},
    "got_ocr2": {"vision_config": {"num_attention_heads": 16}},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "downsample_rate": "1/7", "spatial_target_layers": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 16},
    "helium": {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16},
    "hrm_text": {"num_hidden_layers": 2, "num_layers_per_stack": None},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128, "rope_parameters": _HUNYUAN_ROPE}},
    "hunyuan_vl_text": {"head_dim": 128, "rope_parameters": _HUNYUAN_ROPE},
    "informer": _FORECAST,
    "instructblip": {"image_token_id": 4},
    "instructblipvideo": {"video_token_id": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "llama4": {"vision_config": {"hidden_size": 1408, "vision_output_dim": 4096}},
    "lw_detr": {"projector_scale_factors": [1.0], "num_feature_levels": 1},
    "ministral": {"head_dim": 128},
    "mistral_large4": {"vision_config": {"image_size": 308}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "moonshine_streaming": {"num_key_value_heads": 10, "num_attention_heads": 10},
    "nemotron": {"num_key_value_heads": 8},
    "pp_doclayout_v2": {"class_thresholds": [0.5, 0.5], "class_order": [0, 1]},
    "pp_chart2table": {"vision_config": {"num_attention_heads": 16}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 151652},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 151652},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "sam": {"vision_config": {"num_attention_heads": 16}},
    "sam_hq": {"vision_config": {"num_attention_heads": 16}},
    "step3p7": {"text_config": {"sliding_window": 512}},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "time_series_transformer": _FORECAST,
    "timm_backbone": {"backbone": "resnet18"},
    "tvp": {"num_frames": 4},
    "uvdoc": {
        "backbone_config": {"out_features": [f"stage{n}" for n in range(1, 7)], "out_indices": [1, 2, 3, 4, 5, 6]}
    },
    "vitmatte": {"hidden_size": 768, "backbone_config": {"num_channels": 4}},
    "xmod": {"default_language": "en_XX"},
}
"""Fields that the default config of a model type lacks to be built or run."""


_CODECS = ("dac", "encodec", "mimi", "wavtokenizer_encoder")
"""Model types whose widths cannot be divided: grouped convolutions, and codebooks of the size of a width."""


def default_fields(kind: str) -> dict[str, Any]:
    """Return the fields of a model type's default config."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return _with_words(_merged(CONFIG_MAPPING[kind](**MADE_WITH.get(kind, {})).to_dict(), HINTS.get(kind, {})))


def _with_words(fields: dict[str, Any]) -> dict[str, Any]:
    """Enlarge the vocabulary to hold the image and audio placeholder tokens."""
    special = [
        value
        for name, value in fields.items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    ]
    text = fields.get("text_config", fields)
    if special and isinstance(text, dict) and isinstance(text.get("vocab_size"), int):
        words = {"vocab_size": max(text["vocab_size"], max(special) + 1)}
        return fields | ({"text_config": text | words} if text is not fields else words)
    return fields


def _merged(fields: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    both = dict(fields)
    for name, value in hints.items():
        both[name] = (
            _merged(both[name], value) if isinstance(both.get(name), dict) and isinstance(value, dict) else value
        )
    return both


def shrunk(fields: dict[str, Any], by: int, least: int) -> dict[str, Any]:
    """Shrink a config: few layers and experts, widths and heads divided by `by` where they are divisible."""
    if by == 0:
        return fields
    if fields.get("model_type") in _CODECS:
        by = 1
    depths = {v for k, v in fields.items() if _DEPTH.search(k) and isinstance(v, int) and not isinstance(v, bool)}
    few = _few(fields, depths, least)
    few += few % 2 if "n_recurrent_layers" in fields else 0  # pairs of attention and MLP
    # Widths that grow from stage to stage are those of small models.
    staged = any(isinstance(v, list) and k in ("depths", "hidden_sizes", "embed_dims") for k, v in fields.items())
    small = dict(fields)
    for name, value in fields.items():
        if isinstance(value, dict):
            if (
                all(isinstance(key, str) for key in value)
                and "rope" not in name
                and name not in ("id2label", "label2id")
            ):
                small[name] = shrunk(value, by, least)
            if name == "per_layer_config":
                small[name] = {layer: one for layer, one in value.items() if int(layer) < few}
        elif isinstance(value, bool):
            continue
        elif isinstance(value, int):
            if _DEPTH.search(name):
                small[name] = min(value, few)
            elif _EXPERTS.search(name):
                small[name] = min(value, 8)
            elif name in ("n_group", "num_expert_group", "topk_group"):
                small[name] = 1
            elif name in ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "num_selected_experts"):
                small[name] = min(value, 2)
            elif (
                (not staged or name == "out_hidden_size")
                and by > 1
                and (_WIDTH.search(name) or _HEADS.search(name))
                and value % by == 0
            ):
                small[name] = value // by
        elif isinstance(value, (list, tuple)) and value:
            if name == "depths":
                small[name] = [min(one, 2) for one in value]
            elif len(value) in depths and len(value) > few:
                small[name] = value[:few]
            elif _PLACES.search(name) and all(isinstance(one, int) for one in value) and depths and max(value) >= few:
                count = len(value)
                small[name] = sorted({(few - 1) * (place + 1) // count for place in range(count)})
    if "n_recurrent_layers" in small:
        small["num_hidden_layers"] = sum(small[f"n_{part}_layers"] for part in ("input", "recurrent", "output"))
        small["layer_types"] = fields["layer_types"][: small["num_hidden_layers"]]
    heads, fewer = small.get("num_attention_heads"), small.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(fewer, int) and heads % fewer:
        small["num_key_value_heads"] = math.gcd(heads, fewer)
    if not staged and "out_features" in fields and depths:
        small.pop("out_features")
        small.pop("stage_names", None)
    return small


def _few(fields: dict[str, Any], depths: set[int], least: int) -> int:
    """Return a number of layers with one of each type, and one for each layer whose output is used elsewhere."""
    few = least
    for name, value in fields.items():
        if isinstance(value, (list, tuple)) and value and len(value) in depths and isinstance(value[0], str):
            few = max(few, max(value.index(kind) for kind in set(value)) + 1)
        elif (
            isinstance(value, (list, tuple))
            and value
            and _PLACES.search(name)
            and isinstance(value[0], int)
            and depths
            and max(value) <= max(depths)
        ):
            few = max(few, min(len(value), 8) + 1)
        elif name == "per_layer_config" and value:
            few = max(few, min(int(layer) for layer in value) + 1)
    return few
