"""Loading of a checkpoint's tensors into a module's parameters, without a copy where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import FileIO
from itertools import groupby

import torch
from torch import Tensor, nn

from talkerviz.talker.files.fp8 import dequantise
from talkerviz.talker.files.stored import StoredModule, StoredScale, StoredTensor, first_names

OnBytes = Callable[[int, int], None]

# Bytes of one read: small beside any model, large beside the cost of a read.
_CHUNK_BYTES = 1 << 24


@torch.no_grad()
def read_into(module: nn.Module, stored: StoredModule, on_bytes: OnBytes | None = None) -> None:
    """Fill every parameter of a module in place, on any device and of any float dtype.

    All names and shapes are compared before anything is read. Experts may be stored one by one
    (`experts.7.gate_proj.weight`) or stacked (`experts.gate_up_proj`). A parameter on the CPU that has the dtype of the
    file is read into its own memory, others through a buffer of 16 MiB. Weights in 8-bit floats are multiplied by their
    scales. On the meta device nothing is read.

    Args:
        module: module whose parameters have the stored names without the prefix.
        stored: the tensors, from `find_module`.
        on_bytes: progress callback for the bytes read and the bytes in all.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape, scales are no positive numbers, or a file has
            become shorter.
    """
    pairs = _pairs(module, stored)
    pairs.sort(key=lambda pair: (pair[0].file, pair[0].offset))
    done, total = 0, stored.nbytes
    for file, group in groupby(pairs, lambda pair: pair[0].file):
        with file.open("rb", buffering=0) as source:
            for tensor, parameter in group:
                if parameter.is_meta:
                    continue
                for nbytes in _read(source, tensor, parameter):
                    done += nbytes
                    if on_bytes is not None:
                        on_bytes(done, total)


def _pairs(module: nn.Module, stored: StoredModule) -> list[tuple[StoredTensor, Tensor]]:
    """Pair each stored tensor with its parameter.

    Raises:
        ValueError: names or shapes differ.
    """
    parameters = dict(_parameters(module, stored))
    where, prefix = stored.directory, stored.prefix
    if missing := first_names(repr(prefix + name) for name in parameters if name not in stored.tensors):
        raise ValueError(f"{where}: has no {missing}, which config.json asks for: are both of one checkpoint?")
    if unknown := first_names(_location(tensor) for name, tensor in stored.tensors.items() if name not in parameters):
        raise ValueError(f"{where}: has {unknown}, for which config.json has no place: are both of one checkpoint?")
    pairs = [(stored.tensors[name], parameter) for name, parameter in parameters.items()]
    misshapen = first_names(
        f"{_location(tensor)} as {list(tensor.shape)}, not {list(parameter.shape)}"
        for tensor, parameter in pairs
        if tensor.shape != parameter.shape
    )
    if misshapen:
        raise ValueError(f"{where}: has {misshapen}, as config.json asks for: are both of one checkpoint?")
    return pairs


def _location(tensor: StoredTensor) -> str:
    return f"{tensor.name!r} ({tensor.file.name})"


def _parameters(module: nn.Module, stored: StoredModule) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters by their stored names; for experts that are stored one by one, views of them."""
    for name, parameter in module.named_parameters():
        experts, _, kind = name.rpartition(".")
        if name in stored.tensors or not experts.endswith("experts"):
            yield name, parameter
        elif kind == "gate_up_proj":
            for number, weights in enumerate(parameter):
                for part, weight in zip(("gate_proj", "up_proj"), weights.chunk(2), strict=True):
                    yield f"{experts}.{number}.{part}.weight", weight
        else:
            for number, weight in enumerate(parameter):
                yield f"{experts}.{number}.{kind}.weight", weight


def _read(source: FileIO, tensor: StoredTensor, parameter: Tensor) -> Iterator[int]:
    """Copy a tensor's values from its file; yield the size of each chunk."""
    source.seek(tensor.offset)
    if tensor.scale is not None:
        yield from _read_fp8(source, tensor, tensor.scale, parameter)
        return
    in_place = parameter.device.type == "cpu" and parameter.dtype == tensor.dtype
    for part in torch.split(parameter.view(-1), _CHUNK_BYTES // tensor.dtype.itemsize):
        # Copies to a device are fastest from pinned memory.
        chunk = part if in_place else torch.empty(part.shape, dtype=tensor.dtype, pin_memory=part.is_cuda)
        _read_bytes(source, tensor, chunk)
        if not in_place:
            part.copy_(chunk)
        yield chunk.nbytes


def _read_fp8(source: FileIO, tensor: StoredTensor, scale: StoredScale, parameter: Tensor) -> Iterator[int]:
    """Read a weight in 8-bit floats and multiply it by its scales in float32, some rows at a time."""
    height, width = tensor.shape[-2:]
    factors = _read_scale(scale.tensor).view(-1, -(-width // scale.columns))  # [all rows of blocks, columns of blocks]
    one_factor = len(factors) == 1
    down = -(-height // scale.rows)  # rows of blocks in a matrix
    for rows in torch.split(torch.arange(parameter.numel() // max(width, 1)), max(1, _CHUNK_BYTES // max(width, 1))):
        chunk = torch.empty(len(rows), width, dtype=tensor.dtype)
        _read_bytes(source, tensor, chunk)
        blocks = torch.zeros_like(rows) if one_factor else rows // height * down + rows % height // scale.rows
        values = dequantise(chunk, factors[blocks], scale.columns)
        parameter.view(-1, width)[rows[0] : rows[-1] + 1].copy_(values)
        yield chunk.nbytes


def _read_scale(tensor: StoredTensor) -> Tensor:
    """Read scales as float32.

    Raises:
        ValueError: a scale is negative, infinite or not a number.
    """
    scale = torch.empty(tensor.shape, dtype=tensor.dtype)
    with tensor.file.open("rb", buffering=0) as source:
        source.seek(tensor.offset)
        _read_bytes(source, tensor, scale)
    factors = scale.float()
    if not ((factors >= 0) & (factors < torch.inf)).all():
        raise ValueError(f"{tensor.file}: {tensor.name!r} has scales that are negative, infinite or not a number")
    return factors


def _read_bytes(source: FileIO, tensor: StoredTensor, chunk: Tensor) -> None:
    """Fill a contiguous chunk of a tensor from its file."""
    room = chunk.view(-1).view(torch.uint8).numpy().data
    while room:
        read = source.readinto(room)
        if not read:
            raise ValueError(f"{tensor.file}: ends within {tensor.name!r}: was it written to meanwhile?")
        room = room[read:]
