"""Tensors in a checkpoint's files."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: the safetensors file.
        name: its full name.
        dtype: its dtype in the file.
        shape: its shape; the bytes are row-major.
        offset: position of its first byte in the file.
        scale: scales of a weight in 8-bit floats.
    """

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    scale: StoredScale | None = None

    @property
    def nbytes(self) -> int:
        """Size in the file, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StoredScale:
    """Factors of a weight's blocks.

    Attributes:
        tensor: the factors, row-major [matrices, rows of blocks, columns of blocks].
        rows: rows of a block; those at the end may have fewer.
        columns: columns of a block, as the rows.
    """

    tensor: StoredTensor
    rows: int
    columns: int


@dataclass(frozen=True)
class StoredModule:
    """The tensors of one part of a model.

    Attributes:
        directory: the checkpoint's folder.
        prefix: start of their names, such as `talker.`.
        tensors: the tensors by their names without the prefix.
    """

    directory: Path
    prefix: str
    tensors: Mapping[str, StoredTensor]

    @property
    def nbytes(self) -> int:
        """Size in the files without scales, bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def file_names(self) -> list[str]:
        """Names of the files that have the tensors, sorted."""
        scales = [tensor.scale.tensor for tensor in self.tensors.values() if tensor.scale]
        return sorted({tensor.file.name for tensor in (*self.tensors.values(), *scales)})

    @property
    def dtype(self) -> torch.dtype:
        """Dtype to load the tensors in: that of those without scales, of several the one that they promote to."""
        dtypes = {tensor.dtype for tensor in self.tensors.values() if tensor.scale is None}
        return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.bfloat16


def first_names(names: Iterable[str]) -> str:
    """Join the first three names, and the number of further ones."""
    listed = list(names)
    more = f" and {len(listed) - 3:,} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
