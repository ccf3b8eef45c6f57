"""Tokens, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from talkerviz.targets.huggingface.model_spec import Ask, parts_of

_SPECIAL = ("_id", "_index", "_ids", "_pad")


def safe_tokens(ask: Ask, count: int | None = None, kinds: str = "text decoder language") -> Tensor:
    """Draw tokens [1, count] of plain text, none of them special; by default as many as the prompt has."""
    size = ask.of(kinds, "vocab_size", "n_tokens", "num_tokens", default=100)
    size = min(size) if isinstance(size, (list, tuple)) else size
    special: set[int] = set()
    for part in parts_of(ask.config):
        for name, value in vars(part).items():
            if name.endswith(_SPECIAL):
                special |= {
                    one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, int)
                }
    plain = [token for token in range(min(int(size), 1000)) if token not in special] or [0]
    return torch.tensor(plain)[ask.whole(0, len(plain), 1, ask.prompt_tokens if count is None else count)]


def first_tokens(ask: Ask, count: int = 4) -> Tensor:
    """Tokens [1, count] that a decoder begins with."""
    start = ask.size("decoder text", "decoder_start_token_id", "bos_token_id", default=0)
    return torch.cat([torch.tensor([[start]]), safe_tokens(ask, count - 1, "decoder text")], dim=1)


def with_places(tokens: Tensor, token: int, count: int) -> Tensor:
    """The tokens with places for something else, after the first few of them."""
    return torch.cat([tokens[:, :4], torch.full((1, count), token), tokens[:, 4:]], dim=1)


def boxes(ask: Ask) -> Tensor:
    """Draw the box of each word on a page [1, prompt tokens, 4]: left, top, right, bottom, in thousandths of it."""
    corners = ask.whole(0, 500, 1, ask.prompt_tokens, 2)
    return torch.cat([corners, corners + ask.whole(1, 400, 1, ask.prompt_tokens, 2)], dim=-1)


_VISION = "vision image backbone encoder"
ROWS = 8  # and columns, of patches that come flat
_GRIDS = {"grid_thw", "image_grid_thw", "video_grid_thw", "image_grid_hw"}


def picture_size(ask: Ask) -> tuple[int, int]:
    """Height and width of the pictures that a config is for; 224 where it does not say."""
    size = ask.of(_VISION, "image_size", "img_size", "input_size", "pretrain_image_size", default=224)
    if isinstance(size, dict):
        size = [size.get("height", 224), size.get("width", 224)]
    if isinstance(size, (list, tuple)):
        return int(size[-2 if len(size) > 1 else 0]), int(size[-1])
    return int(size), int(size)


def colours(ask: Ask) -> int:
    """How many numbers a pixel is."""
    return ask.size(_VISION, "num_channels", "in_channels", "in_chans", default=3)


def merged(ask: Ask) -> int:
    """How many patches a side of what becomes one token."""
    return ask.size("vision", "spatial_merge_size", "merge_size", "merge_kernel_size", default=2)


def grid(ask: Ask) -> Tensor:
    """A picture's frames, rows and columns in patches [1, 3]."""
    side = 4 * merged(ask)
    return torch.tensor([[1, side, side]])


def patches(ask: Ask) -> Tensor:
    """A picture that was cut into the patches of `grid` [patches, numbers in a patch]."""
    side = ask.size("vision", "patch_size", default=14)
    deep = ask.size("vision", "temporal_patch_size", default=1)
    return ask.real(int(grid(ask).prod()), colours(ask) * deep * side * side)


def pictures(ask: Ask) -> list[Tensor]:
    """`pixel_values`."""
    height, width = picture_size(ask)
    if _GRIDS & ask.names:
        return [patches(ask)]
    if "spatial_shapes" in ask.names:
        side = ask.size("vision", "patch_size", default=16)
        return [ask.real(1, ROWS * ROWS, colours(ask) * side * side)]
    # Where patches are joined two by two or four by four, a picture must have as many.
    joined = 8 * ask.size(_VISION, "patch_size", default=16)
    found: list[Tensor] = []
    frames = ask.of("vision video", "num_frames")
    for high, wide in dict.fromkeys([(height, width), (joined, joined)]):
        one = ask.real(1, colours(ask), high, wide)
        if isinstance(frames, int):
            found.append(ask.real(1, frames, colours(ask), high, wide))
        # Of one batch there are several: pictures, two to be compared, or the tiles that one was cut into.
        found += [one, *(one[:, None].repeat(1, count, 1, 1, 1) for count in (1, 2, 3, 5))]
    return found


def videos(ask: Ask) -> list[Tensor]:
    """`pixel_values_videos`."""
    if "video_grid_thw" in ask.names:
        return [patches(ask)]
    height, width = picture_size(ask)
    frames = ask.size("vision video", "num_frames", "frames_per_clip", default=4)
    return [ask.real(1, frames, colours(ask), height, width)]


def _past(ask: Ask) -> int:
    lags: list[int] = ask.of("", "lags_sequence", default=[0])
    return ask.size("", "context_length", default=32) + max(lags)


def _values(ask: Ask, length: int) -> list[Tensor]:
    channels = ask.size("", "num_input_channels", "input_size", default=1)
    flat = ask.real(1, length)
    deep = ask.real(1, length, channels)
    return [flat, deep] if hasattr(ask.config, "lags_sequence") and channels == 1 else [deep, flat]


def _times(ask: Ask, length: int) -> Tensor:
    return ask.real(1, length, ask.size("", "num_time_features", default=0))


SERIES: dict[str, Callable[[Ask], list[Any]]] = {
    "past_values": lambda ask: _values(ask, _past(ask)),
    "past_observed_mask": lambda ask: [torch.ones_like(_values(ask, _past(ask))[0])],
    "past_time_features": lambda ask: [_times(ask, _past(ask))],
    "future_values": lambda ask: [_values(ask, ask.size("", "prediction_length", default=8))[0]],
    "future_time_features": lambda ask: [_times(ask, ask.size("", "prediction_length", default=8))],
    "past_values_padding": lambda ask: [torch.zeros(1, _past(ask), dtype=torch.long)],
    "freq": lambda ask: [torch.zeros(1, 1, dtype=torch.long)],
}


_AUDIO = "audio speech encoder"


def bins(ask: Ask) -> int:
    """Mel bins of a spectrum."""
    names = ("num_mel_bins", "feature_size", "n_mels", "input_feat_per_channel", "mel_bins", "num_mels", "input_dim")
    return ask.size(_AUDIO, *names, "feature_projection_input_dim", default=80)


def spectra(ask: Ask) -> list[Tensor]:
    """`input_features`: bins first or last, as long as the config says or a second or so."""
    most = ask.of("audio encoder", "max_source_positions")
    exact = 2 * most if isinstance(most, int) else 128
    mel = bins(ask)
    first = [ask.real(1, mel, length) for length in (exact, 128, 200)]
    last = [ask.real(1, length, mel) for length in (128, exact)]
    return [first[0], last[0], *first[1:], *last[1:], ask.real(1, 1, 1024, mel)]


def waves(ask: Ask) -> list[Tensor]:
    """`input_values`: half a second of a wave, alone or as one channel; or a spectrum of the config's length."""
    wave = ask.real(1, 9600)
    length = ask.of("audio", "max_length")
    spectrum = (
        [ask.real(1, length, bins(ask))] if isinstance(length, int) and hasattr(ask.config, "num_mel_bins") else []
    )
    return [*spectrum, wave, wave[:, None]]
