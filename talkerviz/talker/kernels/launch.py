"""Block sizes and launch options of the fused kernels."""

from __future__ import annotations

import functools
from math import gcd
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 32 << 10
"""Bytes of weights that a program holds in registers while it waits for the vector to multiply them with."""

WARPS = 8
"""Warps of a program by default; benchmarks/fused_sizes.py measures both."""


def next_power_of_2(size: int) -> int:
    """Round a size up to a power of 2."""
    return 1 << (size - 1).bit_length()


def block_rows(*matrices: Tensor, at_once: int | None = None) -> int:
    """Return the rows of a program: a power of 2 that divides the rows of all matrices and fits `BLOCK_BYTES`.

    `at_once` is the number of matrices whose rows a program holds at once; all by default.
    """
    shared = gcd(*(len(matrix) for matrix in matrices))
    columns = sum(next_power_of_2(matrix.shape[1]) for matrix in matrices[:at_once])
    most = max(1, BLOCK_BYTES // (columns * matrices[0].element_size()))
    return min(shared & -shared, 1 << (most.bit_length() - 1))


@functools.cache
def supports_dependent_launch(device: torch.device) -> bool:
    """Return True if a device has programmatic dependent launch."""
    nvidia = device.type == "cuda" and bool(torch.version.cuda)
    return nvidia and torch.cuda.get_device_capability(device) >= (9, 0)


def launch_options(x: Tensor, warps: int | None = None) -> dict[str, Any]:
    """Return a kernel's launch options; on Hopper and later it starts while the kernel before it runs."""
    early = supports_dependent_launch(x.device)
    return {"PDL": early, "num_warps": warps or WARPS, **({"launch_pdl": True} if early else {})}
