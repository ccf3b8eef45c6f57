"""Configs of the talker, read from a checkpoint's config.json, and the three presets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import torch

from talkerviz.talker.model.layers import is_activation

PRESETS = ("tiny", "lite", "full")

# Values that are implemented: a checkpoint with another one is refused, rather than run wrongly.
_FIXED = {
    "interleaved": True,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Config of a stack of decoder layers. Field names and defaults are those of transformers' config classes."""

    vocab_size: int
    hidden_size: int = 1024
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int = 16
    num_key_value_heads: int
    head_dim: int
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    rope_theta: float = 10_000.0
    attention_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class TextConfig(StackConfig):
    """Config of the decoder (`talker.model`), key `talker_config.text_config`.

    `intermediate_size` is the width of the two projections; the layers are mixtures of experts. transformers has no
    default for `shared_expert_intermediate_size`, and derives a missing `head_dim` from the hidden size.
    """

    vocab_size: int = 3072
    intermediate_size: int = 2048
    num_hidden_layers: int = 20
    num_key_value_heads: int = 2
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    num_experts: int = 128
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 384
    shared_expert_intermediate_size: int
    norm_topk_prob: bool = False


@dataclass(frozen=True, kw_only=True)
class CodePredictorConfig(StackConfig):
    """Config of the code predictor (`talker.code_predictor`), key `talker_config.code_predictor_config`."""

    vocab_size: int = 2048
    intermediate_size: int = 3072
    num_hidden_layers: int = 5
    num_key_value_heads: int = 8
    head_dim: int = 128
    num_code_groups: int = 32


@dataclass(frozen=True, kw_only=True)
class TalkerConfig:
    """Config of a talker: key `talker_config`, and the three special text tokens from the top level.

    Defaults are those of transformers' config classes.
    """

    text: TextConfig
    code_predictor: CodePredictorConfig
    num_code_groups: int = 32
    thinker_hidden_size: int = 2048
    accept_hidden_layer: int = 18
    codec_bos_id: int = 4197
    codec_eos_token_id: int = 4198
    codec_pad_id: int = 4196
    codec_nothink_id: int = 4203
    codec_think_bos_id: int = 4204
    codec_think_eos_id: int = 4205
    speaker_id: Mapping[str, int]
    tts_bos_token_id: int = 151672
    tts_eos_token_id: int = 151673
    tts_pad_token_id: int = 151671

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TalkerConfig:
        """Read the parsed config.json of a Qwen3-Omni checkpoint.

        Raises:
            ValueError: a key without default is missing, or a value has the wrong type or is not implemented; the
                message names the key.
        """
        talker = _section(data, "talker_config")
        config = _read(
            cls,
            {
                **data,
                **talker,
                "text": _read_stack(TextConfig, talker, "text_config"),
                "code_predictor": _read_stack(CodePredictorConfig, talker, "code_predictor_config"),
            },
            "talker_config",
        )
        _check(config)
        return config

    def speaker(self, name: str) -> int:
        """Return the codec token of a speaker; case does not matter.

        Raises:
            ValueError: the talker has no such speaker.
        """
        tokens = {known.lower(): token for known, token in self.speaker_id.items()}
        if name.lower() not in tokens:
            raise ValueError(f"unknown speaker '{name}': choose from {', '.join(sorted(self.speaker_id))}")
        return tokens[name.lower()]


_Config = TypeVar("_Config")


def _section(data: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    if key not in data:
        raise ValueError(f"config has no key '{where}{key}'")
    section = data[key]
    if not isinstance(section, Mapping):
        raise ValueError(f"config key '{where}{key}' is {section!r}: it must have keys of its own")
    return section


def _read(cls: type[_Config], data: Mapping[str, Any], where: str) -> _Config:
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in data:
            if field.default is MISSING:
                raise ValueError(f"config has no key '{where}.{field.name}'")
            continue
        value = data[field.name]
        if field.type in _TYPE_CHECKS and not _TYPE_CHECKS[field.type](value):
            raise ValueError(f"config key '{where}.{field.name}' cannot be {value!r}")
        values[field.name] = value
    return cls(**values)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# Checks of a field's value, by its annotation.
_TYPE_CHECKS: dict[Any, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": _is_count,
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value > 0,
    "str": is_activation,
    "tuple[int, int, int]": lambda value: isinstance(value, tuple) and len(value) == 3 and all(map(_is_count, value)),
    "Mapping[str, int]": lambda value: isinstance(value, Mapping) and all(map(_is_count, value.values())),
}


def _read_stack(cls: type[_Config], talker: Mapping[str, Any], key: str) -> _Config:
    where = f"talker_config.{key}"
    # A decoder without a config is refused below, as its shared expert has no default.
    section = dict(_section(talker, key, "talker_config.")) if key in talker else {}
    # transformers 5 writes rope_parameters; the published file has rope_theta and rope_scaling, which goes before it.
    rope_key = "rope_scaling" if section.get("rope_scaling") else "rope_parameters"
    rope = _section(section, rope_key, f"{where}.") if section.get(rope_key) else {}
    section |= rope
    if "num_local_experts" in section:  # so transformers 5
        section["num_experts"] = section["num_local_experts"]
    for name, value in _FIXED.items():
        if section.get(name, value) != value:
            raise ValueError(f"config key '{where}.{name}' is {section[name]!r}: only {value!r} is implemented")
    # `type` is the name of old files for `rope_type`.
    type_key = "rope_type" if "rope_type" in rope else "type"
    if rope.get(type_key, "default") != "default":
        raise ValueError(f"config key '{where}.{type_key}' is {rope[type_key]!r}: only 'default' is implemented")
    _check_window(cls, section, where)
    if isinstance(section.get("mrope_section"), list):
        section["mrope_section"] = tuple(section["mrope_section"])
    if cls is TextConfig and "head_dim" not in section:
        hidden_size, heads = (section.get(name, getattr(cls, name)) for name in ("hidden_size", "num_attention_heads"))
        if _is_count(hidden_size) and _is_count(heads) and heads > 0:
            section["head_dim"] = hidden_size // heads
    return _read(cls, section, where)


def _check_window(cls: type[Any], section: Mapping[str, Any], where: str) -> None:
    """Check that no layer has a sliding window which shortens its attention.

    transformers has no `use_sliding_window`, by which files turn the window off. There a window of the decoder drops
    keys from its cache, and one of the code predictor, from layer `max_window_layers` on, raises an error.

    Raises:
        ValueError: a layer has one.
    """
    layer_types, window = section.get("layer_types"), section.get("sliding_window")
    if isinstance(layer_types, list) and "sliding_attention" in layer_types:
        raise ValueError(f"config key '{where}.layer_types' has 'sliding_attention', which is not implemented")
    if window is None or section.get("use_sliding_window") is False:
        return
    if cls is TextConfig:
        positions = section.get("max_position_embeddings", cls.max_position_embeddings)
        is_full = _is_count(window) and _is_count(positions) and window >= positions
    else:
        layers = section.get("num_hidden_layers", cls.num_hidden_layers)
        first = section.get("max_window_layers", 28)  # transformers' default
        is_full = isinstance(layer_types, list) or (_is_count(layers) and _is_count(first) and layers <= first)
    if not is_full:
        raise ValueError(f"config key '{where}.sliding_window' is {window!r}: sliding windows are not implemented")


def _check(config: TalkerConfig) -> None:
    """Check that the values of a config are consistent.

    Raises:
        ValueError: they are not.
    """
    text, predictor = config.text, config.code_predictor
    codec_tokens = [value for name, value in vars(config).items() if name.startswith("codec_")]
    codec_tokens += config.speaker_id.values()
    problems = {
        "a width, a depth or a number of heads is 0": any(
            value == 0 for stack in (text, predictor) for value in vars(stack).values() if not isinstance(value, bool)
        ),
        "key-value heads do not divide heads": any(
            stack.num_attention_heads % max(stack.num_key_value_heads, 1) for stack in (text, predictor)
        ),
        "rms_norm_eps is 1 or more": any(stack.rms_norm_eps >= 1 for stack in (text, predictor)),
        "head_dim is odd": any(stack.head_dim % 2 for stack in (text, predictor)),
        "mrope_section does not add up to half of head_dim": 2 * sum(text.mrope_section) != text.head_dim,
        "more experts are used than there are": text.num_experts_per_tok > text.num_experts,
        "decoder and code predictor differ in hidden_size": text.hidden_size != predictor.hidden_size,
        "decoder and code predictor differ in num_code_groups": config.num_code_groups != predictor.num_code_groups,
        "num_code_groups is below 2": config.num_code_groups < 2,
        "a codec token or a speaker is beyond the decoder's vocab_size": max(codec_tokens) >= text.vocab_size,
        "it has no speakers": not config.speaker_id,
    }
    for problem, is_wrong in problems.items():
        if is_wrong:
            raise ValueError(f"config key 'talker_config' is inconsistent: {problem}")


@cache
def preset(name: str) -> TalkerConfig:
    """Return the config of a preset: `full` (the published talker), `lite` or `tiny`.

    `lite` has every width, depth and head of `full`, but 4 experts of width 64, two of them used per token: the shapes
    are the same at every module down to the decoder layer. `tiny` is for tests.

    Raises:
        ValueError: another name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset '{name}': choose from {', '.join(PRESETS)}")
    file = resources.files(__package__).joinpath("qwen3_omni_talker_config.json")
    full = TalkerConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
    if name == "full":
        return full
    if name == "lite":
        few_experts = replace(full.text, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
        return replace(full, text=few_experts)
    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    text = replace(
        full.text,
        **small,  # type: ignore[arg-type]
        mrope_section=(4, 2, 2),
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
    )
    code_predictor = replace(full.code_predictor, **small)  # type: ignore[arg-type]
    return replace(full, text=text, code_predictor=code_predictor, thinker_hidden_size=96)


def default_dtype(name: str) -> torch.dtype:
    """Return a preset's default dtype: bfloat16 for `full`, as published, and float32 for the small ones."""
    preset(name)
    return torch.bfloat16 if name == "full" else torch.float32
