"""Weights in 8-bit floats: their scales in a checkpoint, and the values that the two stand for.

A weight `X` of dtype F8_E4M3 is multiplied by `X_scale_inv` (transformers' `FineGrainedFP8Config`) or `X_scale`
(compressed-tensors), which has one factor for the tensor, for each row, or for each block of `weight_block_size`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from talkerviz.talker.files.stored import StoredScale, StoredTensor, first_names

_SCALES = ("_scale_inv", "_scale")
# Scales of activations, which are not quantised here.
_UNUSED = (".input_scale", ".activation_scale")


def is_scale(name: str) -> bool:
    """Return True if a tensor's name is that of scales."""
    return name.endswith((*_SCALES, *_UNUSED))


def attach_scales(
    directory: Path, tensors: Mapping[str, StoredTensor], block: tuple[int, int] | None
) -> dict[str, StoredTensor]:
    """Move scales to the weights that they belong to.

    Args:
        directory: the checkpoint's folder, for errors.
        tensors: all tensors by their full names.
        block: rows and columns of a block by config.json; by default a weight's blocks are of equal size.

    Returns:
        The tensors without scales; those in 8-bit floats have `scale`.

    Raises:
        ValueError: a weight in 8-bit floats has no scales, two, or of another number than it has blocks.
    """
    weights = {name: tensor for name, tensor in tensors.items() if tensor.dtype.itemsize == 1 and not is_scale(name)}
    scales: dict[str, StoredScale] = {}
    used: set[str] = set()
    for name, weight in weights.items():
        beside = [name + ending for ending in _SCALES if name + ending in tensors]
        if len(beside) != 1:
            what = "both " + " and ".join(map(repr, beside)) if beside else f"no {name + _SCALES[0]!r}"
            raise ValueError(f"{directory}: {name!r} is in 8-bit floats and has {what} beside it: is it whole?")
        scale = tensors[beside[0]]
        scales[name] = StoredScale(scale, *_block_of(directory, weight, scale, block))
        used.add(beside[0])
        used |= {name.removesuffix(".weight") + ending for ending in _UNUSED}
    kept = {name: tensor for name, tensor in tensors.items() if name not in used}
    if odd := first_names(repr(name) for name, tensor in kept.items() if tensor.dtype.itemsize == 1 and is_scale(name)):
        raise ValueError(f"{directory}: has {odd}, scales of no weight in 8-bit floats: is it whole?")
    return {name: replace(tensor, scale=scales.get(name)) for name, tensor in kept.items()}


def _block_of(
    directory: Path, weight: StoredTensor, scale: StoredTensor, block: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the rows and columns of a weight's blocks.

    Raises:
        ValueError: the scales are not one for each block.
    """
    if weight.dtype == scale.dtype:
        raise ValueError(f"{directory}: {scale.name!r} is of dtype F8_E4M3, which scales do not have: is it whole?")
    if len(weight.shape) >= 2:
        *matrices, rows, columns = weight.shape
        if math.prod(scale.shape) == 1:
            return max(math.prod(weight.shape[:-1]), 1), max(columns, 1)
        if scale.shape == weight.shape[:-1]:
            return 1, max(columns, 1)
        if block and scale.shape == (*matrices, -(-rows // block[0]), -(-columns // block[1])):
            return block
        if len(scale.shape) == len(weight.shape) and list(scale.shape[:-2]) == matrices:
            down, across = scale.shape[-2:]
            if down and across and rows % down == 0 and columns % across == 0:
                return rows // down, columns // across
    raise ValueError(
        f"{directory}: {scale.name!r} has shape {list(scale.shape)}, which is not one scale for the tensor, each row "
        f"or each block of {weight.name!r}, {list(weight.shape)}"
    )


def dequantise(weight: Tensor, scale: Tensor, columns: int) -> Tensor:
    """Multiply rows of a weight in 8-bit floats [rows, in] by their scales [rows, blocks] of `columns`: float32."""
    return weight.float() * scale.repeat_interleave(columns, dim=1)[:, : weight.shape[1]]
