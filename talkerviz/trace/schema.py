"""Schema of a trace: columns of the calls table, tensor descriptions, module facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa


class TensorInfo(NamedTuple):
    """Description of an input or output tensor of a call.

    Attributes:
        name: `0` for the first positional argument, `inputs_embeds` for a keyword argument, `output` for a bare result;
            places in containers are joined with dots (`0.1`, `cache.layers.0-27.keys`). In a call inside a layer
            `cache.layers.*.keys` is that layer's part of the cache.
        shape: sizes, outermost first; -1 for a size that is no number, in a nested tensor or an exported model.
        dtype: torch's name without the prefix, `float32`.
        device: torch's name, `cpu` or `cuda:0`.
        copies: number of equal tensors at that place, such as 28 for `cache.layers.0-27.keys`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    copies: int = 1

    @property
    def shape_text(self) -> str:
        """The shape as `1x20x1024`; `scalar` for a tensor without dimensions."""
        return "x".join(map(str, self.shape)) or "scalar"

    @property
    def text(self) -> str:
        """One line, `x: 1x20x1024 float32 cpu`; for equal tensors `x: 28 of 1x2x16x64 float32 cpu`."""
        several = f"{self.copies:,} of " if self.copies > 1 else ""
        return f"{self.name}: {several}{self.shape_text} {self.dtype} {self.device}"


Tensors = tuple[TensorInfo, ...]
"""Tensor list: all inputs or all outputs of a call."""


class ModuleInfo(NamedTuple):
    """One module of the traced tree.

    Attributes:
        path: dotted path from the root, whose name the recorder sets.
        class_name: name of the Python class.
        parameters: number of elements of its own parameters and its children's; one that is shared counts once.
        parameter_bytes: size of these as stored, in bytes: of quantised ones and shards, of the tensors they hold.
        aliases: further paths under which the same module object is registered.
    """

    path: str
    class_name: str
    parameters: int
    parameter_bytes: int
    aliases: tuple[str, ...] = ()


def tensor_infos(rows: Iterable[Sequence[Any]]) -> Tensors:
    """Convert parsed JSON, which has lists for tuples, to a tensor list."""
    return tuple(TensorInfo(name, tuple(shape), *rest) for name, shape, *rest in rows)


def module_infos(rows: Iterable[Sequence[Any]]) -> tuple[ModuleInfo, ...]:
    """Convert parsed JSON, which has lists for tuples, to modules."""
    return tuple(ModuleInfo._make((*row, tuple(aliases))) for *row, aliases in rows)


_TENSORS = pa.list_(
    pa.struct(
        [
            pa.field("name", pa.string(), nullable=False),
            pa.field("shape", pa.list_(pa.int64()), nullable=False),
            pa.field("dtype", pa.string(), nullable=False),
            pa.field("device", pa.string(), nullable=False),
            pa.field("copies", pa.int64(), nullable=False),
        ]
    )
)
NAME = pa.dictionary(pa.int32(), pa.string())

CALLS = pa.schema(
    [
        pa.field("call", pa.int64(), nullable=False),  # 0, 1, 2, ... in the order in which calls began
        pa.field("parent", pa.int64()),  # the calling call; null at the top
        pa.field("depth", pa.int32(), nullable=False),  # 0 at the top
        pa.field("thread", pa.int32(), nullable=False),  # 0 for the thread that began to record
        pa.field("path", NAME, nullable=False),
        pa.field("class", NAME, nullable=False),
        pa.field("phase", NAME),
        pa.field("frame", pa.int64()),  # null outside frames
        pa.field("step", pa.int64()),  # the code predictor's pass within its frame, 0 to 14; null elsewhere
        # 0, 1, 2, ... from a prefill to the next one of the same thread or cache; null where nothing is generated.
        pa.field("request", pa.int64()),
        pa.field("run", pa.int32(), nullable=False),  # 0, 1, 2, ... under `--repeat`; frames begin anew in each
        pa.field("rank", pa.int32(), nullable=False),  # rank of the process; 0 for a single process
        # Of a collective, or the wait for an asynchronous one: its group of ranks, `0-3` for the default group and
        # `0-3 group NAME` for another one, or `0>1 tag 7` for a message; and its number by the group's own count, equal
        # on all its ranks. Messages are counted from the recording's start. Null for modules.
        pa.field("peers", NAME),
        pa.field("collective", pa.int64()),
        pa.field("inputs", _TENSORS, nullable=False),
        pa.field("outputs", _TENSORS, nullable=False),
        # Equal numbers mean equal tensor lists, so that a million calls load, group and compare fast.
        pa.field("inputs_id", pa.int32(), nullable=False),
        pa.field("outputs_id", pa.int32(), nullable=False),
        pa.field("host_start_ns", pa.int64()),  # since the recording began; null under `--clock none`
        pa.field("host_ns", pa.int64()),
        pa.field("host_self_ns", pa.int64()),  # without child calls and garbage collections
        pa.field("device_start_ns", pa.int64()),  # on the host's time line; null without `--clock cuda`
        pa.field("device_ns", pa.int64()),  # between the call's events on its stream
        pa.field("device_self_ns", pa.int64()),
        pa.field("busy_ns", pa.int64()),  # its kernels' run time; null without `--busy`
        # Null without `--cost`, and where other threads did some of the work; with uncounted operators a lower bound.
        pa.field("flops", pa.int64()),
        pa.field("uncounted_operators", pa.int64()),  # calls of operators whose arithmetic is unknown, in the call
        pa.field("bytes_read", pa.int64()),  # from outside the call, each byte once
        pa.field("bytes_written", pa.int64()),  # read outside the call
        pa.field("memory_peak_bytes", pa.int64()),  # above the allocation at its start; null without `--memory`
        pa.field("memory_delta_bytes", pa.int64()),  # allocation at its end less at its start
        pa.field("error", pa.string()),  # the exception's class name where forward raised
    ]
)
"""Columns of the Parquet file: a row a call, in the order in which calls began."""

COLLECTIONS = pa.schema(
    [
        pa.field("call", pa.int64(), nullable=False),  # the innermost open call; -1 for none
        pa.field("thread", pa.int32(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),  # 0, 1 or 2, the whole heap
        pa.field("host_start_ns", pa.int64(), nullable=False),  # on the time line of the calls
        pa.field("host_ns", pa.int64(), nullable=False),
    ]
)
"""Columns of Python's garbage collections, in the order in which they began; no module's self time includes them."""
