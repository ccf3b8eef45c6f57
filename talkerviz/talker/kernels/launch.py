"""How the fused layers' kernels are cut into programs, and launched."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 32 << 10
"""Of weights that a program holds in its registers, while it waits for what they are to be multiplied with."""

WARPS = 8
"""Of a program."""


def next_power_of_2(size: int) -> int:
    """The least power of 2 that is not less."""
    return 1 << (size - 1).bit_length()


def block_rows(*matrices: Tensor, at_once: int | None = None) -> int:
    """How many rows a program takes, a power of 2 that divides them all, of matrices all of which it reads."""
    shared = gcd(*(len(matrix) for matrix in matrices))
    columns = sum(next_power_of_2(matrix.shape[1]) for matrix in matrices[:at_once])
    most = max(1, BLOCK_BYTES // (columns * matrices[0].element_size()))
    return min(shared & -shared, 1 << (most.bit_length() - 1))


def supports_dependent_launch(device: torch.device) -> bool:
    """Whether a device has programmatic dependent launch."""
    nvidia = device.type == "cuda" and bool(torch.version.cuda)
    return nvidia and torch.cuda.get_device_capability(device) >= (9, 0)


def launch_options(x: Tensor, warps: int | None = None) -> dict[str, Any]:
    """How a kernel is launched: on Hopper and later it begins while the one before it runs."""
    early = supports_dependent_launch(x.device)
    return {"PDL": early, "num_warps": warps or WARPS, **({"launch_pdl": True} if early else {})}
