"""The numbers of a talker, read from the checkpoint's config.json, and the three presets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import torch

from talkerviz.talker.model.layers import is_activation

PRESETS = ("tiny", "lite", "full")

# What this implementation takes for granted: a checkpoint that says otherwise must not run and be wrong.
_FIXED = {
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "interleaved": True,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "sliding_window": None,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class StackConfig:
    """A stack of decoder layers. Field names are the keys of the checkpoint's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float


@dataclass(frozen=True)
class TextConfig(StackConfig):
    """The decoder (`talker.model`), key `talker_config.text_config`.

    `intermediate_size` is the width of the two projections; the layers are mixtures of experts.
    """

    mrope_section: tuple[int, int, int]
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int


@dataclass(frozen=True)
class CodePredictorConfig(StackConfig):
    """The code predictor (`talker.code_predictor`), key `talker_config.code_predictor_config`."""

    num_code_groups: int


@dataclass(frozen=True)
class TalkerConfig:
    """A whole talker: key `talker_config`, and the three special text tokens from the top level."""

    text: TextConfig
    code_predictor: CodePredictorConfig
    num_code_groups: int
    thinker_hidden_size: int
    accept_hidden_layer: int
    codec_bos_id: int
    codec_eos_token_id: int
    codec_pad_id: int
    codec_nothink_id: int
    codec_think_bos_id: int
    codec_think_eos_id: int
    speaker_id: Mapping[str, int]
    tts_bos_token_id: int
    tts_eos_token_id: int
    tts_pad_token_id: int

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TalkerConfig:
        """Read the parsed config.json of a Qwen3-Omni checkpoint.

        Raises ValueError, naming the key, where one is missing, is of another kind, or has a value that this talker
        does not implement.
        """
        talker = _section(data, "talker_config")
        config = _read(
            cls,
            {
                **data,
                **talker,
                "text": _stack(TextConfig, talker, "text_config"),
                "code_predictor": _stack(CodePredictorConfig, talker, "code_predictor_config"),
            },
            "talker_config",
        )
        _check(config)
        return config

    def speaker(self, name: str) -> int:
        """The codec token of a voice, in whatever case. Raises ValueError for one that this talker does not have."""
        if name.lower() not in self.speaker_id:
            raise ValueError(f"unknown speaker '{name}': choose from {', '.join(sorted(self.speaker_id))}")
        return self.speaker_id[name.lower()]


_Config = TypeVar("_Config")


def _section(data: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    if key not in data:
        raise ValueError(f"config has no key '{where}{key}'")
    section = data[key]
    if not isinstance(section, Mapping):
        raise ValueError(f"config key '{where}{key}' is {section!r}: it must have keys of its own")
    return section


def _read(cls: type[_Config], data: Mapping[str, Any], where: str) -> _Config:
    kinds = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    for name, kind in kinds.items():
        if name not in data:
            raise ValueError(f"config has no key '{where}.{name}'")
        if kind in _KINDS and not _KINDS[kind](data[name]):
            raise ValueError(f"config key '{where}.{name}' cannot be {data[name]!r}")
    return cls(**{name: data[name] for name in kinds})


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# By its annotation, whether a field can have a value.
_KINDS: dict[Any, Callable[[Any], bool]] = {
    "int": _is_number,
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value > 0,
    "str": is_activation,
    "tuple[int, int, int]": lambda value: isinstance(value, tuple) and len(value) == 3 and all(map(_is_number, value)),
    "Mapping[str, int]": lambda value: isinstance(value, Mapping) and all(map(_is_number, value.values())),
}


def _stack(cls: type[_Config], talker: Mapping[str, Any], key: str) -> _Config:
    where = f"talker_config.{key}"
    section = dict(_section(talker, key, "talker_config."))
    # transformers 5 writes rope_parameters; the published file has rope_theta and rope_scaling.
    for rope in ("rope_scaling", "rope_parameters"):
        if section.get(rope):
            section |= _section(section, rope, f"{where}.")
    if "num_local_experts" in section:  # so transformers 5
        section["num_experts"] = section["num_local_experts"]
    for name, value in _FIXED.items():
        if section.get(name, value) != value:
            raise ValueError(f"config key '{where}.{name}' is {section[name]!r}: only {value!r} is implemented")
    if section.get("rope_type", "default") != "default":
        raise ValueError(f"config key '{where}.rope_type' is {section['rope_type']!r}: only 'default' is implemented")
    if isinstance(section.get("mrope_section"), list):
        section["mrope_section"] = tuple(section["mrope_section"])
    return _read(cls, section, where)


def _check(config: TalkerConfig) -> None:
    """Raise ValueError unless the numbers of a config fit each other."""
    text, predictor = config.text, config.code_predictor
    codec_tokens = [value for name, value in vars(config).items() if name.startswith("codec_")]
    codec_tokens += config.speaker_id.values()
    wrong = {
        "a width, a depth or a number of heads is 0": any(
            value == 0 for stack in (text, predictor) for value in vars(stack).values()
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
        "a codec token or a speaker is beyond the decoder's vocab_size": max(codec_tokens) >= text.vocab_size,
        "it has no speakers": not config.speaker_id,
    }
    for what, is_so in wrong.items():
        if is_so:
            raise ValueError(f"config key 'talker_config' does not fit itself: {what}")


@cache
def preset(name: str) -> TalkerConfig:
    """The config of a preset: `full` (the published talker), `lite` or `tiny`.

    `lite` keeps every width, depth and head of `full` but has 4 experts of width 64, two of them used per
    token: the same shapes at every module down to the decoder layer. `tiny` is for tests.

    Raises ValueError for any other name.
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
    """The dtype a preset is run in unless asked otherwise: `full` as published, the small ones exactly."""
    preset(name)
    return torch.bfloat16 if name == "full" else torch.float32
