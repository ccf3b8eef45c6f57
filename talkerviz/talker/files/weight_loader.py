"""Read a module's weights from a checkpoint's files, each straight to where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import FileIO
from itertools import groupby

import torch
from torch import Tensor, nn

from talkerviz.talker.files.checkpoint import StoredModule, StoredTensor, first_names

OnBytes = Callable[[int, int], None]

# Of a file at a time: little beside any model, and much beside the cost of a read.
_CHUNK_BYTES = 1 << 24


@torch.no_grad()
def read_into(module: nn.Module, stored: StoredModule, on_bytes: OnBytes | None = None) -> None:
    """Fill every parameter of a module, in place, wherever and of whatever float dtype it is.

    All names and shapes are compared before anything is read. Mixtures of experts may be stored one expert at a time
    (`experts.7.gate_proj.weight`) or as one (`experts.gate_up_proj`), whichever the module has. On the CPU in the
    dtype of the file a tensor is read into the parameter's own memory, else by way of a buffer of 16 MiB. A module on
    the meta device is compared, and nothing is read.

    Args:
        module: its parameters have the stored names without the prefix.
        stored: what to read, from `find_module`.
        on_bytes: called with how many bytes are read, and of how many.

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
    """What is to be read, and where to. Raises ValueError unless the two fit each other."""
    parameters = dict(_parameters(module, stored))
    where, prefix = stored.directory, stored.prefix
    if missing := first_names(repr(prefix + name) for name in parameters if name not in stored.tensors):
        raise ValueError(f"{where}: has no {missing}, which config.json asks for: are both of one checkpoint?")
    if unknown := first_names(_place(tensor) for name, tensor in stored.tensors.items() if name not in parameters):
        raise ValueError(f"{where}: has {unknown}, for which config.json has no place: are both of one checkpoint?")
    pairs = [(stored.tensors[name], parameter) for name, parameter in parameters.items()]
    misshapen = first_names(
        f"{_place(tensor)} as {list(tensor.shape)}, not {list(parameter.shape)}"
        for tensor, parameter in pairs
        if tensor.shape != parameter.shape
    )
    if misshapen:
        raise ValueError(f"{where}: has {misshapen}, as config.json asks for: are both of one checkpoint?")
    return pairs


def _place(tensor: StoredTensor) -> str:
    return f"{tensor.name!r} ({tensor.file.name})"


def _parameters(module: nn.Module, stored: StoredModule) -> Iterator[tuple[str, Tensor]]:
    """The parameters under the names that are stored: experts that are stored one by one are views of theirs."""
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
    """Copy a tensor's bytes from its file, and say after each chunk how many it was."""
    source.seek(tensor.offset)
    straight = parameter.device.type == "cpu" and parameter.dtype == tensor.dtype
    for part in torch.split(parameter.view(-1), _CHUNK_BYTES // tensor.dtype.itemsize):
        # Pinned memory is what a device copies from fastest.
        chunk = part if straight else torch.empty(part.shape, dtype=tensor.dtype, pin_memory=part.is_cuda)
        room = chunk.view(torch.uint8).numpy().data
        while room:
            read = source.readinto(room)
            if not read:
                raise ValueError(f"{tensor.file}: ends within {tensor.name!r}: was it written to meanwhile?")
            room = room[read:]
        if not straight:
            part.copy_(chunk)
        yield chunk.nbytes
