"""Codes to sound: transformers' `Qwen3OmniMoeCode2Wav`, built, loaded, and fed chunk by chunk while codes come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talkerviz.talker.model.config import preset
from talkerviz.talker.model.layers import is_activation

SAMPLE_RATE = 24_000
CHUNK_FRAMES = 25
LEFT_CONTEXT = 25

# The published checkpoint's, and what transformers takes where a config.json has no such key.
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
    """transformers' config of a preset's code2wav: `full` and `lite` the published one, `tiny` for tests.

    Raises ValueError for any other name.
    """
    preset(name)
    return code2wav_config_from(_TINY if name == "tiny" else {})


def samples_of(config: Any, frames: int) -> int:
    """How many samples one pass over so many frames gives: 1,920 for each frame, of the last one 555 less.

    What sounds at the end of a frame depends on the frame after it as well. Each transposed convolution of the decoder
    leaves out the step for which it has not seen that one.
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
    """Sound of frames while they come: `decode_chunks` of `chunks_of`, whose arguments and errors these are.

    The samples of all chunks together are, bit for bit, those of transformers' `chunked_decode` with this chunk size
    and left context; `seamless` keeps those that are lost there.
    """
    return decode_chunks(code2wav, chunks_of(frames, chunk_frames), left_context, seamless=seamless)


def chunks_of(frames: Iterable[Tensor], chunk_frames: int) -> Iterator[Tensor]:
    """Codes [16] of a frame each, so many frames at a time: [frames, 16] on the CPU, the last ones as they are left.

    Raises ValueError, with the first chunk, for chunks of no frames.
    """
    if chunk_frames < 1:
        raise ValueError(f"a chunk must have 1 frame or more, not {chunk_frames}")
    held: list[Tensor] = []
    for frame in frames:
        held.append(frame)
        if len(held) == chunk_frames:
            yield torch.stack(held).cpu()
            held = []
    if held:
        yield torch.stack(held).cpu()


@torch.no_grad()
def decode_chunks(
    code2wav: Any, chunks: Iterable[Tensor], left_context: int = LEFT_CONTEXT, *, seamless: bool = False
) -> Iterator[Tensor]:
    """Sound of each chunk of codes, in one pass that reads the frames before it as well.

    A pass ends early (see `samples_of`). transformers' `chunked_decode` goes on with the next frame all the same, so at
    every cut 555 samples, 23 ms, are in no chunk; chunks are like that here, too. `seamless` takes them from the pass
    over the next chunk: nothing is lost but at the very end.

    Args:
        code2wav: a `Qwen3OmniMoeCode2Wav`.
        chunks: codes [frames, 16] each, int64, from `chunks_of`.
        left_context: how many frames before a chunk are read with it, where there are so many.
        seamless: keep what is lost at cuts.

    Returns:
        Samples [n] of 1/24,000 s from -1 to 1, float32, on the device of code2wav.

    Raises:
        ValueError: codes that code2wav does not have, a negative left context, or none for `seamless`.
    """
    least = 1 if seamless else 0
    if left_context < least:
        raise ValueError(f"the left context must be {least} or more, not {left_context}")
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
            # Where the pass before had to end.
            begin = samples_of(config, len(context))
        yield code2wav(window.T[None].to(device))[0, 0, begin:].float()
        context = window[max(len(window) - left_context, 0) :]


def check_codes(codes: Tensor, config: Any, first: int = 0) -> None:
    """Raise ValueError unless codes [frames, 16] on the CPU, numbered from `first`, are such as code2wav has."""
    if codes.ndim != 2 or codes.shape[1] != config.num_quantizers:
        raise ValueError(f"codes of shape {list(codes.shape)}: code2wav takes {config.num_quantizers} of each frame")
    # By NumPy, since this is none of the operations of a run.
    values = codes.numpy()
    wrong = np.argwhere((values < 0) | (values >= config.codebook_size))
    if len(wrong):
        frame, place = wrong[0].tolist()
        raise ValueError(
            f"frame {first + frame} has the code {values[frame, place]} at place {place}: "
            f"code2wav knows 0 to {config.codebook_size - 1}"
        )


def code2wav_config_from(section: Mapping[str, Any]) -> Any:
    """transformers' config of some keys, the others as published. Keys beyond those are not looked at."""
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
    for what, is_so in wrong.items():
        if is_so:
            raise ValueError(f"config key 'code2wav_config' does not fit itself: {what}")
    theta = float(values.pop("rope_theta"))
    config = Qwen3OmniMoeCode2WavConfig(**values, rope_parameters={"rope_type": "default", "rope_theta": theta})
    if samples_of(config, 1) < 1:
        raise ValueError("config key 'code2wav_config' does not fit itself: a frame is too short to be heard alone")
    return config


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1_000_000  # beyond that torch itself may fail


# By the kind of the published value, whether another can stand in its place.
_CHECKS: Mapping[type, Callable[[Any], bool]] = {
    int: _is_size,
    float: lambda value: type(value) in (int, float) and value > 0,
    bool: lambda value: type(value) is bool,
    str: is_activation,
    list: lambda value: isinstance(value, list) and all(map(_is_size, value)),
}
