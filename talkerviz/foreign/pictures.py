"""Pictures and videos, in the layouts that there are."""

from __future__ import annotations

import torch
from torch import Tensor

from talkerviz.foreign.ask import Ask

_KINDS = "vision image backbone encoder"
ROWS = 8  # and columns, of patches that come flat
_GRIDS = {"grid_thw", "image_grid_thw", "video_grid_thw", "image_grid_hw"}


def picture_size(ask: Ask) -> tuple[int, int]:
    """Height and width of the pictures that a config is for; 224 where it does not say."""
    size = ask.of(_KINDS, "image_size", "img_size", "input_size", "pretrain_image_size", default=224)
    if isinstance(size, dict):
        size = [size.get("height", 224), size.get("width", 224)]
    if isinstance(size, (list, tuple)):
        return int(size[-2 if len(size) > 1 else 0]), int(size[-1])
    return int(size), int(size)


def colours(ask: Ask) -> int:
    """How many numbers a pixel is."""
    return ask.size(_KINDS, "num_channels", "in_channels", "in_chans", default=3)


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
    joined = 8 * ask.size(_KINDS, "patch_size", default=16)
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
