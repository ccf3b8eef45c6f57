"""Loading of a checkpoint's tensors into a module's parameters, without a copy where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import FileIO
from itertools import groupby

import torch
from torch import Tensor, nn

from talkerviz.talker.files.checkpoint import StoredModule, StoredTensor, first_names

OnBytes = Callable[[int, int], None]

# Bytes of one read: small beside any model, large beside the cost of a read.
_CHUNK_BYTES = 1 << 24


@torch.no_grad()
def read_into(module: nn.Module, stored: StoredModule, on_bytes: OnBytes | None = None) -> None:
    """Fill every parameter of a module in place, on any device and of any float dtype.

    All names and shapes are compared before anything is read. Experts may be stored one by one
    (`experts.7.gate_proj.weight`) or stacked (`experts.gate_up_proj`). A parameter on the CPU that has the dtype of the
    file is read into its own memory, others through a buffer of 16 MiB. On the meta device nothing is read.

    Args:
        module: module whose parameters have the stored names without the prefix.
        stored: the tensors, from `find_module`.
        on_bytes: progress callback for the bytes read and the bytes in all.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape, or a file has become shorter.
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
    """Copy a tensor's bytes from its file; yield the size of each chunk."""
    source.seek(tensor.offset)
    in_place = parameter.device.type == "cpu" and parameter.dtype == tensor.dtype
    for part in torch.split(parameter.view(-1), _CHUNK_BYTES // tensor.dtype.itemsize):
        # Copies to a device are fastest from pinned memory.
        chunk = part if in_place else torch.empty(part.shape, dtype=tensor.dtype, pin_memory=part.is_cuda)
        room = chunk.view(torch.uint8).numpy().data
        while room:
            read = source.readinto(room)
            if not read:
                raise ValueError(f"{tensor.file}: ends within {tensor.name!r}: was it written to meanwhile?")
            room = room[read:]
        if not in_place:
            part.copy_(chunk)
        yield chunk.nbytes
