"""Random inputs of each modality: tokens, images, videos, time series, audio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from talkerviz.targets.huggingface.model_spec import ModelSpec, parts_of

_SPECIAL = ("_id", "_index", "_ids", "_pad")


def safe_tokens(spec: ModelSpec, count: int | None = None, kinds: str = "text decoder language") -> Tensor:
    """Draw tokens [1, count] that are not special; None is the length of the prompt."""
    size = spec.field(kinds, "vocab_size", "n_tokens", "num_tokens", default=100)
    size = min(size) if isinstance(size, (list, tuple)) else size
    special: set[int] = set()
    for part in parts_of(spec.config):
        for name, value in vars(part).items():
            if name.endswith(_SPECIAL):
                special |= {
                    item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, int)
                }
    plain = [token for token in range(min(int(size), 1000)) if token not in special] or [0]
    return torch.tensor(plain)[spec.integers(0, len(plain), 1, spec.prompt_tokens if count is None else count)]


def first_tokens(spec: ModelSpec, count: int = 4) -> Tensor:
    """Draw a decoder's first tokens [1, count]."""
    start = spec.size("decoder text", "decoder_start_token_id", "bos_token_id", default=0)
    return torch.cat([torch.tensor([[start]]), safe_tokens(spec, count - 1, "decoder text")], dim=1)


def with_placeholders(tokens: Tensor, token: int, count: int) -> Tensor:
    """Insert `count` placeholder tokens after the first four."""
    return torch.cat([tokens[:, :4], torch.full((1, count), token), tokens[:, 4:]], dim=1)


def boxes(spec: ModelSpec) -> Tensor:
    """Draw bounding boxes of words [1, prompt tokens, 4]: left, top, right, bottom, in thousandths of the page."""
    corners = spec.integers(0, 500, 1, spec.prompt_tokens, 2)
    return torch.cat([corners, corners + spec.integers(1, 400, 1, spec.prompt_tokens, 2)], dim=-1)


_VISION = "vision image backbone encoder"
ROWS = 8  # rows and columns of flattened patches
_GRIDS = {"grid_thw", "image_grid_thw", "video_grid_thw", "image_grid_hw"}


def picture_size(spec: ModelSpec) -> tuple[int, int]:
    """Return the height and width of the config's images, by default 224."""
    size = spec.field(_VISION, "image_size", "img_size", "input_size", "pretrain_image_size", default=224)
    if isinstance(size, dict):
        size = [size.get("height", 224), size.get("width", 224)]
    if isinstance(size, (list, tuple)):
        return int(size[-2 if len(size) > 1 else 0]), int(size[-1])
    return int(size), int(size)


def colour_channels(spec: ModelSpec) -> int:
    """Return the number of colour channels."""
    return spec.size(_VISION, "num_channels", "in_channels", "in_chans", default=3)


def merge_size(spec: ModelSpec) -> int:
    """Return the number of patches per side that are merged to one token."""
    return spec.size("vision", "spatial_merge_size", "merge_size", "merge_kernel_size", default=2)


def grid(spec: ModelSpec) -> Tensor:
    """Return an image's frames, rows and columns in patches [1, 3]."""
    side = 4 * merge_size(spec)
    return torch.tensor([[1, side, side]])


def patches(spec: ModelSpec) -> Tensor:
    """Draw an image as the patches of `grid` [patches, values of a patch]."""
    side = spec.size("vision", "patch_size", default=14)
    deep = spec.size("vision", "temporal_patch_size", default=1)
    return spec.normal(int(grid(spec).prod()), colour_channels(spec) * deep * side * side)


def pictures(spec: ModelSpec) -> list[Tensor]:
    """Draw `pixel_values` in each layout."""
    height, width = picture_size(spec)
    if _GRIDS & spec.names:
        return [patches(spec)]
    if "spatial_shapes" in spec.names:
        side = spec.size("vision", "patch_size", default=16)
        return [spec.normal(1, ROWS * ROWS, colour_channels(spec) * side * side)]
    # Models that merge patches two by two or four by four need a multiple of these.
    merged_side = 8 * spec.size(_VISION, "patch_size", default=16)
    layouts: list[Tensor] = []
    frames = spec.field("vision video", "num_frames")
    for high, wide in dict.fromkeys([(height, width), (merged_side, merged_side)]):
        image = spec.normal(1, colour_channels(spec), high, wide)
        if isinstance(frames, int):
            layouts.append(spec.normal(1, frames, colour_channels(spec), high, wide))
        # Several images in one row: a list of them, a pair to compare, or the tiles of one.
        layouts += [image, *(image[:, None].repeat(1, count, 1, 1, 1) for count in (1, 2, 3, 5))]
    return layouts


def videos(spec: ModelSpec) -> list[Tensor]:
    """Draw `pixel_values_videos`."""
    if "video_grid_thw" in spec.names:
        return [patches(spec)]
    height, width = picture_size(spec)
    frames = spec.size("vision video", "num_frames", "frames_per_clip", default=4)
    return [spec.normal(1, frames, colour_channels(spec), height, width)]


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


def mel_bins(spec: ModelSpec) -> int:
    """Return the number of mel bins."""
    names = ("num_mel_bins", "feature_size", "n_mels", "input_feat_per_channel", "mel_bins", "num_mels", "input_dim")
    return spec.size(_AUDIO, *names, "feature_projection_input_dim", default=80)


def spectra(spec: ModelSpec) -> list[Tensor]:
    """Draw `input_features` with bins first and last, of the config's length and of about a second."""
    most = spec.field("audio encoder", "max_source_positions")
    exact = 2 * most if isinstance(most, int) else 128
    bins = mel_bins(spec)
    bins_first = [spec.normal(1, bins, length) for length in (exact, 128, 200)]
    bins_last = [spec.normal(1, length, bins) for length in (128, exact)]
    return [bins_first[0], bins_last[0], *bins_first[1:], *bins_last[1:], spec.normal(1, 1, 1024, bins)]


def waves(spec: ModelSpec) -> list[Tensor]:
    """Draw `input_values`: 0.6 s at 16 kHz, with and without a channel axis, or a spectrum of the config's length."""
    wave = spec.normal(1, 9600)
    length = spec.field("audio", "max_length")
    spectrum = (
        [spec.normal(1, length, mel_bins(spec))]
        if isinstance(length, int) and hasattr(spec.config, "num_mel_bins")
        else []
    )
    return [*spectrum, wave, wave[:, None]]
