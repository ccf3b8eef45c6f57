"""Decoding of codes to audio with transformers' `Qwen3OmniMoeCode2Wav`: its config, and chunks while codes come.

Shapes: F frames, Q codebooks (`num_quantizers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talkerviz.talker.model.config import preset
from talkerviz.talker.model.layers import is_activation

SAMPLE_RATE = 24_000
"""Samples per second."""
CHUNK_FRAMES = 25
"""Frames of a chunk by default: 2 s of audio."""
LEFT_CONTEXT = 25
"""Frames before a chunk that are decoded with it by default; transformers' default."""

# The published checkpoint's values, which are transformers' defaults too.
_PUBLISHED: Mapping[str, Any] = {
    "codebook_size": 2048,
    "num_quantizers": 16,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "sliding_window": 72,
    "max_position_embeddings": 8000,
    "decoder_dim": 1536,
    "upsample_rates": [8, 5, 4, 3],
    "upsampling_ratios": [2, 2],
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
_TINY: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "decoder_dim": 96,
    # Short, so that a few frames reach beyond it.
    "sliding_window": 8,
}


def code2wav_config(name: str) -> Any:
    """Return transformers' config of a preset's code2wav: of `full` and `lite` as published, `tiny` for tests.

    Raises:
        ValueError: another name.
    """
    preset(name)
    return code2wav_config_from(_TINY if name == "tiny" else {})


def samples_of(config: Any, frames: int) -> int:
    """Return the number of samples of one pass: as published 1,920 a frame, and 555 less in all.

    The end of a frame's audio depends on the frame after it. Each transposed convolution of the decoder drops the step
    for which it has not seen that frame.
    """
    samples = frames
    for ratio in config.upsampling_ratios:
        samples *= ratio
    for rate in config.upsample_rates:
        samples = (samples - 1) * rate
    return samples


def stream_audio(
    code2wav: Any,
    frames: Iterable[Tensor],
    chunk_frames: int = CHUNK_FRAMES,
    left_context: int = LEFT_CONTEXT,
    *,
    seamless: bool = False,
) -> Iterator[Tensor]:
    """Decode frames to audio while they come; arguments and errors are those of `chunks_of` and `decode_chunks`.

    The samples of all chunks are, bit for bit, those of transformers' `chunked_decode` with this chunk size and left
    context; `seamless` keeps the samples that are lost there.
    """
    return decode_chunks(code2wav, chunks_of(frames, chunk_frames), left_context, seamless=seamless)


def chunks_of(frames: Iterable[Tensor], chunk_frames: int) -> Iterator[Tensor]:
    """Group the codes [Q] of frames into chunks [chunk_frames, Q] on the CPU; the last chunk may be shorter.

    Raises:
        ValueError: with the first chunk, `chunk_frames` is below 1.
    """
    if chunk_frames < 1:
        raise ValueError(f"a chunk must have 1 frame or more, not {chunk_frames}")
    chunk: list[Tensor] = []
    for frame in frames:
        chunk.append(frame)
        if len(chunk) == chunk_frames:
            yield torch.stack(chunk).cpu()
            chunk = []
    if chunk:
        yield torch.stack(chunk).cpu()


@torch.no_grad()
def decode_chunks(
    code2wav: Any, chunks: Iterable[Tensor], left_context: int = LEFT_CONTEXT, *, seamless: bool = False
) -> Iterator[Tensor]:
    """Decode each chunk of codes to audio in one pass, which also covers the frames before it.

    A pass ends early (see `samples_of`), and transformers' `chunked_decode` goes on with the next frame: 555 samples,
    23 ms, are lost between two chunks. The same happens here. `seamless` takes them from the pass over the next chunk,
    so that they are lost at the end of the audio only.

    Args:
        code2wav: a `Qwen3OmniMoeCode2Wav`.
        chunks: codes [F, Q] of each chunk, int64, from `chunks_of`.
        left_context: frames before a chunk that are decoded with it, fewer at the start.
        seamless: keep the samples between chunks.

    Yields:
        Samples [n] of 1/24,000 s from -1 to 1, float32, on the device of code2wav.

    Raises:
        ValueError: codes that code2wav does not have, a negative left context, or none for `seamless`.
    """
    minimum = 1 if seamless else 0
    if left_context < minimum:
        raise ValueError(f"the left context must be {minimum} or more, not {left_context}")
    config, device = code2wav.config, code2wav.device
    frame_samples = int(code2wav.total_upsample)
    context = torch.empty(0, config.num_quantizers, dtype=torch.long)
    first = 0
    for chunk in chunks:
        check_codes(chunk, config, first)
        first += len(chunk)
        window = torch.cat((context, chunk))
        begin = len(context) * frame_samples
        if seamless and len(context):
            # The pass before ended here.
            begin = samples_of(config, len(context))
        yield code2wav(window.T[None].to(device))[0, 0, begin:].float()
        context = window[max(len(window) - left_context, 0) :]


def check_codes(codes: Tensor, config: Any, first: int = 0) -> None:
    """Check that code2wav has all codes [F, Q], which are on the CPU; `first` is the number of their first frame.

    Raises:
        ValueError: it does not.
    """
    if codes.ndim != 2 or codes.shape[1] != config.num_quantizers:
        raise ValueError(f"codes of shape {list(codes.shape)}: code2wav takes {config.num_quantizers} of each frame")
    # In NumPy, so that a trace of the run does not have these operations.
    values = codes.numpy()
    wrong = np.argwhere((values < 0) | (values >= config.codebook_size))
    if len(wrong):
        frame, group = wrong[0].tolist()
        raise ValueError(
            f"frame {first + frame} has the code {values[frame, group]} in group {group}: "
            f"code2wav knows 0 to {config.codebook_size - 1}"
        )


def code2wav_config_from(section: Mapping[str, Any]) -> Any:
    """Build transformers' config from a checkpoint's `code2wav_config`; missing keys are as published.

    Raises:
        ValueError: a value cannot be run.
    """
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig

    # transformers 5 writes rope_parameters; the published file has rope_theta.
    rope = section.get("rope_parameters") or {}
    values = {**_PUBLISHED, **{name: section[name] for name in _PUBLISHED if name in section}}
    if isinstance(rope, Mapping):
        values["rope_theta"] = rope.get("rope_theta", values["rope_theta"])
    for name, value in values.items():
        if not _CHECKS[type(_PUBLISHED[name])](value):
            raise ValueError(f"config key 'code2wav_config.{name}' cannot be {value!r}")
    if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default":
        raise ValueError(f"config key 'code2wav_config.rope_parameters' is {rope!r}: only 'default' is implemented")
    heads, width = values["num_attention_heads"], values["hidden_size"]
    wrong = {
        "heads do not divide hidden_size into even parts": width % (2 * heads),
        "key-value heads do not divide heads": heads % values["num_key_value_heads"],
        "decoder_dim cannot be halved once for each of upsample_rates": (
            values["decoder_dim"] % 2 ** len(values["upsample_rates"])
        ),
    }
    for problem, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"config key 'code2wav_config' is inconsistent: {problem}")
    theta = float(values.pop("rope_theta"))
    config = Qwen3OmniMoeCode2WavConfig(**values, rope_parameters={"rope_type": "default", "rope_theta": theta})
    if samples_of(config, 1) < 1:
        raise ValueError("config key 'code2wav_config' is inconsistent: one frame alone gives no samples")
    return config


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1_000_000  # beyond that torch itself may fail


# Checks of a value, by the type of the published one.
_CHECKS: Mapping[type, Callable[[Any], bool]] = {
    int: _is_size,
    float: lambda value: type(value) in (int, float) and value > 0,
    bool: lambda value: type(value) is bool,
    str: is_activation,
    list: lambda value: isinstance(value, list) and all(map(_is_size, value)),
}
