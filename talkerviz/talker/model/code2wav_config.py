"""Config of code2wav, read from a checkpoint's config.json, and those of the presets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from talkerviz.talker.model.config import preset
from talkerviz.talker.model.layers import is_activation

SAMPLE_RATE = 24_000
"""Samples per second."""


@dataclass(frozen=True, kw_only=True)
class Code2WavConfig:
    """Config of code2wav, key `code2wav_config`. Field names and defaults are those of transformers, and as published.

    Attributes:
        sliding_window: frames that a frame attends to, with itself.
        upsampling_ratios: factors of the upsampling before the decoder, from frames to latent steps.
        upsample_rates: factors of the decoder's blocks, from latent steps to samples.
        decoder_dim: channels before the first block, each of which halves them.
    """

    codebook_size: int = 2048
    num_quantizers: int = 16
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 8
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 64
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    rope_theta: float = 10_000.0
    sliding_window: int = 72
    upsampling_ratios: tuple[int, ...] = (2, 2)
    upsample_rates: tuple[int, ...] = (8, 5, 4, 3)
    decoder_dim: int = 1536

    def samples_of(self, frames: int) -> int:
        """Return the number of samples of a stream of frames: as published 1,920 a frame, and 555 less in all.

        The end of a frame's audio depends on the frame after it. Each transposed convolution of the decoder drops the
        step for which it has not seen that frame.
        """
        samples = frames
        for ratio in self.upsampling_ratios:
            samples *= ratio
        for rate in self.upsample_rates:
            samples = (samples - 1) * rate
        return samples


def code2wav_config(name: str) -> Code2WavConfig:
    """Return the config of a preset's code2wav: `full` and `lite` as published, `tiny` for tests.

    Raises:
        ValueError: another name.
    """
    preset(name)
    if name != "tiny":
        return Code2WavConfig()
    return Code2WavConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        decoder_dim=96,
        # Short, so that a few frames reach beyond it.
        sliding_window=8,
    )


def code2wav_config_from(section: Mapping[str, Any]) -> Code2WavConfig:
    """Read a checkpoint's `code2wav_config`; a missing key has its default.

    Raises:
        ValueError: a value cannot be run.
    """
    # transformers 5 writes rope_parameters; older files have rope_theta and rope_scaling, which goes before it.
    rope_key = "rope_scaling" if section.get("rope_scaling") else "rope_parameters"
    rope = section.get(rope_key) or {}
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"config key 'code2wav_config.{rope_key}' is {rope!r}: only 'default' is implemented")
    given = {**section, **({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})}
    values: dict[str, Any] = {}
    for field in fields(Code2WavConfig):
        if field.name not in given:
            continue
        value = given[field.name]
        if not _CHECKS[str(field.type)](value):
            raise ValueError(f"config key 'code2wav_config.{field.name}' cannot be {value!r}")
        values[field.name] = tuple(value) if isinstance(value, list) else value
    if "head_dim" not in values:
        width, heads = (values.get(name, getattr(Code2WavConfig, name)) for name in ("hidden_size", _HEADS))
        if width % heads:
            raise ValueError("config key 'code2wav_config' is inconsistent: heads do not divide hidden_size")
        values["head_dim"] = width // heads
    config = Code2WavConfig(**values)
    problems = {
        "head_dim is odd": config.head_dim % 2,
        "key-value heads do not divide heads": config.num_attention_heads % config.num_key_value_heads,
        "decoder_dim cannot be halved once for each of upsample_rates": (
            config.decoder_dim % 2 ** len(config.upsample_rates)
        ),
        "one frame alone gives no samples": config.samples_of(1) < 1,
    }
    for problem, is_wrong in problems.items():
        if is_wrong:
            raise ValueError(f"config key 'code2wav_config' is inconsistent: {problem}")
    return config


_HEADS = "num_attention_heads"


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1_000_000  # beyond that torch itself may fail


# Checks of a field's value, by its annotation.
_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "int": _is_size,
    "float": lambda value: type(value) in (int, float) and value > 0,
    "bool": lambda value: type(value) is bool,
    "str": is_activation,
    "tuple[int, ...]": lambda value: isinstance(value, list) and all(map(_is_size, value)),
}
