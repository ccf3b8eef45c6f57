"""A processor for the tiny Qwen3-Omni, and sounds, pictures and turns for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3OmniMoeConfig

Image = pytest.importorskip("PIL.Image", reason="pip install 'talkerviz[capture]'")
soundfile = pytest.importorskip("soundfile", reason="pip install 'talkerviz[capture]'")

# As the published one's, without tools and videos.
_CHAT_TEMPLATE = """\
{%- for turn in messages -%}
<|im_start|>{{ turn.role }}
{% if turn.content is string -%}
{{ turn.content }}
{%- else -%}
{%- for part in turn.content -%}
{%- if part.type == 'audio' -%}<|audio_start|><|audio_pad|><|audio_end|>
{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def token_ids(config: Qwen3OmniMoeConfig) -> dict[str, int]:
    """Return the tokens that mean something to the model, and their ids in its config."""
    thinker = config.thinker_config
    return {
        "<|im_start|>": config.im_start_token_id,
        "<|im_end|>": config.im_end_token_id,
        "<tts_pad>": config.tts_pad_token_id,
        "<tts_text_bos>": config.tts_bos_token_id,
        "<tts_text_eod>": config.tts_eos_token_id,
        "<|audio_start|>": thinker.audio_start_token_id,
        "<|audio_pad|>": thinker.audio_token_id,
        "<|audio_end|>": thinker.audio_end_token_id,
        "<|vision_start|>": thinker.vision_start_token_id,
        "<|image_pad|>": thinker.image_token_id,
        "<|video_pad|>": thinker.video_token_id,
        "<|vision_end|>": thinker.vision_end_token_id,
        "system": config.system_token_id,
        "user": config.user_token_id,
        "assistant": config.assistant_token_id,
    }


def save_tiny_processor(directory: Path, config: Qwen3OmniMoeConfig) -> None:
    """Write the files of a `Qwen3OmniMoeProcessor`: a token a byte, small pictures, 16 mel bands."""
    known = token_ids(config)
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | known
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=token.startswith("<"), normalized=False) for token in known])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|im_end|>",
        eos_token="<|im_end|>",
        chat_template=_CHAT_TEMPLATE,
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "audio_token": "<|audio_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
    ).save_pretrained(directory)
    settings = {
        "processor_class": "Qwen3OmniMoeProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config.thinker_config.audio_config.num_mel_bins,
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": config.thinker_config.vision_config.patch_size,
        "merge_size": config.thinker_config.vision_config.spatial_merge_size,
        "temporal_patch_size": config.thinker_config.vision_config.temporal_patch_size,
        "size": {"shortest_edge": 8 * 8, "longest_edge": 48 * 48},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))


def write_sound(path: Path, seconds: float = 0.8, rate: int = 16000, channels: int = 1, seed: int = 0) -> Path:
    """Noise in a WAV file."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (int(seconds * rate), channels))
    soundfile.write(path, noise, rate)
    return path


def write_picture(path: Path, width: int = 44, height: int = 30, seed: int = 0) -> Path:
    """Noise in a PNG file."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def user(*parts: str | Path) -> dict[str, Any]:
    """Return a turn of the user: texts, sounds (.wav) and pictures (.png)."""
    return {"role": "user", "content": [_part(part) for part in parts]}


def _part(part: str | Path) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = "audio" if part.suffix == ".wav" else "image"
    return {"type": kind, kind: str(part)}


def copy_ending_at(directory: Path, to: Path, token: int) -> Path:
    """Return a copy of a checkpoint whose answers end at this token, and not at `<|im_end|>`."""
    shutil.copytree(directory, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, "im_end_token_id": token}))
    return to
