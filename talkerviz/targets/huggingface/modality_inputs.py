"""Tokens, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from talkerviz.targets.huggingface.model_spec import ModelSpec, parts_of

TOKENS = 12
_SPECIAL = ("_id", "_index", "_ids", "_pad")


def safe_tokens(spec: ModelSpec, count: int = TOKENS, kinds: str = "text decoder language") -> Tensor:
    """Tokens [1, count] that stand for nothing but text."""
    size = spec.field(kinds, "vocab_size", "n_tokens", "num_tokens", default=100)
    size = min(size) if isinstance(size, (list, tuple)) else size
    special: set[int] = set()
    for part in parts_of(spec.config):
        for name, value in vars(part).items():
            if name.endswith(_SPECIAL):
                special |= {
                    one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, int)
                }
    plain = [token for token in range(min(int(size), 1000)) if token not in special] or [0]
    return torch.tensor(plain)[spec.integers(0, len(plain), 1, count)]


def first_tokens(spec: ModelSpec, count: int = 4) -> Tensor:
    """Tokens [1, count] that a decoder begins with."""
    start = spec.size("decoder text", "decoder_start_token_id", "bos_token_id", default=0)
    return torch.cat([torch.tensor([[start]]), safe_tokens(spec, count - 1, "decoder text")], dim=1)


def with_places(tokens: Tensor, token: int, count: int) -> Tensor:
    """The tokens with places for something else, after the first few of them."""
    return torch.cat([tokens[:, :4], torch.full((1, count), token), tokens[:, 4:]], dim=1)


def boxes(spec: ModelSpec, count: int = TOKENS) -> Tensor:
    """Where each word stands on a page [1, count, 4]: left, top, right, bottom, in thousandths of it."""
    corners = spec.integers(0, 500, 1, count, 2)
    return torch.cat([corners, corners + spec.integers(1, 400, 1, count, 2)], dim=-1)


_VISION = "vision image backbone encoder"
ROWS = 8  # and columns, of patches that come flat
_GRIDS = {"grid_thw", "image_grid_thw", "video_grid_thw", "image_grid_hw"}


def picture_size(spec: ModelSpec) -> tuple[int, int]:
    """Height and width of the pictures that a config is for; 224 where it does not say."""
    size = spec.field(_VISION, "image_size", "img_size", "input_size", "pretrain_image_size", default=224)
    if isinstance(size, dict):
        size = [size.get("height", 224), size.get("width", 224)]
    if isinstance(size, (list, tuple)):
        return int(size[-2 if len(size) > 1 else 0]), int(size[-1])
    return int(size), int(size)


def colours(spec: ModelSpec) -> int:
    """How many numbers a pixel is."""
    return spec.size(_VISION, "num_channels", "in_channels", "in_chans", default=3)


def merged(spec: ModelSpec) -> int:
    """How many patches a side of what becomes one token."""
    return spec.size("vision", "spatial_merge_size", "merge_size", "merge_kernel_size", default=2)


def grid(spec: ModelSpec) -> Tensor:
    """A picture's frames, rows and columns in patches [1, 3]."""
    side = 4 * merged(spec)
    return torch.tensor([[1, side, side]])


def patches(spec: ModelSpec) -> Tensor:
    """A picture that was cut into the patches of `grid` [patches, numbers in a patch]."""
    side = spec.size("vision", "patch_size", default=14)
    deep = spec.size("vision", "temporal_patch_size", default=1)
    return spec.normal(int(grid(spec).prod()), colours(spec) * deep * side * side)


def pictures(spec: ModelSpec) -> list[Tensor]:
    """`pixel_values`."""
    height, width = picture_size(spec)
    if _GRIDS & spec.names:
        return [patches(spec)]
    if "spatial_shapes" in spec.names:
        side = spec.size("vision", "patch_size", default=16)
        return [spec.normal(1, ROWS * ROWS, colours(spec) * side * side)]
    # Where patches are joined two by two or four by four, a picture must have as many.
    joined = 8 * spec.size(_VISION, "patch_size", default=16)
    found: list[Tensor] = []
    frames = spec.field("vision video", "num_frames")
    for high, wide in dict.fromkeys([(height, width), (joined, joined)]):
        one = spec.normal(1, colours(spec), high, wide)
        if isinstance(frames, int):
            found.append(spec.normal(1, frames, colours(spec), high, wide))
        # Of one batch there are several: pictures, two to be compared, or the tiles that one was cut into.
        found += [one, *(one[:, None].repeat(1, count, 1, 1, 1) for count in (1, 2, 3, 5))]
    return found


def videos(spec: ModelSpec) -> list[Tensor]:
    """`pixel_values_videos`."""
    if "video_grid_thw" in spec.names:
        return [patches(spec)]
    height, width = picture_size(spec)
    frames = spec.size("vision video", "num_frames", "frames_per_clip", default=4)
    return [spec.normal(1, frames, colours(spec), height, width)]


def _past(spec: ModelSpec) -> int:
    lags: list[int] = spec.field("", "lags_sequence", default=[0])
    return spec.size("", "context_length", default=32) + max(lags)


def _values(spec: ModelSpec, length: int) -> list[Tensor]:
    channels = spec.size("", "num_input_channels", "input_size", default=1)
    flat = spec.normal(1, length)
    deep = spec.normal(1, length, channels)
    return [flat, deep] if hasattr(spec.config, "lags_sequence") and channels == 1 else [deep, flat]


def _times(spec: ModelSpec, length: int) -> Tensor:
    return spec.normal(1, length, spec.size("", "num_time_features", default=0))


SERIES: dict[str, Callable[[ModelSpec], list[Any]]] = {
    "past_values": lambda spec: _values(spec, _past(spec)),
    "past_observed_mask": lambda spec: [torch.ones_like(_values(spec, _past(spec))[0])],
    "past_time_features": lambda spec: [_times(spec, _past(spec))],
    "future_values": lambda spec: [_values(spec, spec.size("", "prediction_length", default=8))[0]],
    "future_time_features": lambda spec: [_times(spec, spec.size("", "prediction_length", default=8))],
    "past_values_padding": lambda spec: [torch.zeros(1, _past(spec), dtype=torch.long)],
    "freq": lambda spec: [torch.zeros(1, 1, dtype=torch.long)],
}


_AUDIO = "audio speech encoder"


def bins(spec: ModelSpec) -> int:
    """Mel bins of a spectrum."""
    names = ("num_mel_bins", "feature_size", "n_mels", "input_feat_per_channel", "mel_bins", "num_mels", "input_dim")
    return spec.size(_AUDIO, *names, "feature_projection_input_dim", default=80)


def spectra(spec: ModelSpec) -> list[Tensor]:
    """`input_features`: bins first or last, as long as the config says or a second or so."""
    most = spec.field("audio encoder", "max_source_positions")
    exact = 2 * most if isinstance(most, int) else 128
    mel = bins(spec)
    first = [spec.normal(1, mel, length) for length in (exact, 128, 200)]
    last = [spec.normal(1, length, mel) for length in (128, exact)]
    return [first[0], last[0], *first[1:], *last[1:], spec.normal(1, 1, 1024, mel)]


def waves(spec: ModelSpec) -> list[Tensor]:
    """`input_values`: half a second of a wave, alone or as one channel; or a spectrum of the config's length."""
    wave = spec.normal(1, 9600)
    length = spec.field("audio", "max_length")
    spectrum = (
        [spec.normal(1, length, bins(spec))] if isinstance(length, int) and hasattr(spec.config, "num_mel_bins") else []
    )
    return [*spectrum, wave, wave[:, None]]
