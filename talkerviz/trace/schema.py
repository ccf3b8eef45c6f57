"""What a trace is made of: the columns of a call, a tensor's description, a module's facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa


class TensorInfo(NamedTuple):
    """What one tensor looked like as it went into or came out of a call.

    Attributes:
        name: where it was found: `0` for the first positional argument, `inputs_embeds` for a keyword,
            `output` for a bare result; nested places are joined with dots (`0.1`, `cache.layers.0-27.keys`). In a call
            inside a layer `cache.layers.*.keys` is what the cache has for that layer.
        shape: its sizes, outermost first; -1 for one that is no number, in a nested tensor or an exported model.
        dtype: torch's name without the prefix, `float32`.
        device: torch's name, `cpu` or `cuda:0`.
        copies: how many equal ones stand there, as in a cache of 28 layers: `cache.layers.0-27.keys`.
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
        """All of it in a line, as `x: 1x20x1024 float32 cpu`; of several equal ones `28 of 1x2x16x64 float32 cpu`."""
        several = f"{self.copies:,} of " if self.copies > 1 else ""
        return f"{self.name}: {several}{self.shape_text} {self.dtype} {self.device}"


Tensors = tuple[TensorInfo, ...]
"""All tensors of a call's inputs, or of its outputs."""


class ModuleInfo(NamedTuple):
    """One module of the traced tree.

    Attributes:
        path: its dotted name from the root, which itself is named by the recorder.
        class_name: the name of its Python class.
        parameters: how many numbers its own parameters hold, without its children's; tables add those up, as in
            `Trace.table()["parameters"]`.
        parameter_bytes: the bytes of those.
        aliases: further paths under which the same module object is registered.
    """

    path: str
    class_name: str
    parameters: int
    parameter_bytes: int
    aliases: tuple[str, ...] = ()


def tensor_infos(rows: Iterable[Sequence[Any]]) -> Tensors:
    """Make a list of tensors of what JSON gives back: lists for tuples."""
    return tuple(TensorInfo(name, tuple(shape), *rest) for name, shape, *rest in rows)


def module_infos(rows: Iterable[Sequence[Any]]) -> tuple[ModuleInfo, ...]:
    """Modules as JSON gives them back: lists for tuples."""
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
        pa.field("parent", pa.int64()),  # the call inside which this one ran; null at the top
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
        pa.field("rank", pa.int32(), nullable=False),  # the process's among several; 0 where there is but one
        # A collective, and the wait for one that was begun before: whom it is among, `0-3` or `0>1` for a message, and
        # its number among theirs, the same on all of them; null for modules.
        pa.field("peers", NAME),
        pa.field("collective", pa.int64()),
        pa.field("inputs", _TENSORS, nullable=False),
        pa.field("outputs", _TENSORS, nullable=False),
        # Equal numbers mean equal lists of tensors: what makes a million calls load, group and compare fast.
        pa.field("inputs_id", pa.int32(), nullable=False),
        pa.field("outputs_id", pa.int32(), nullable=False),
        pa.field("host_start_ns", pa.int64()),  # since the recording began; null under `--clock none`
        pa.field("host_ns", pa.int64()),
        pa.field("host_self_ns", pa.int64()),  # without the calls it made and garbage collections
        pa.field("device_start_ns", pa.int64()),  # on the host's time line; null but under `--clock cuda`
        pa.field("device_ns", pa.int64()),  # between the call's events on its stream
        pa.field("device_self_ns", pa.int64()),
        pa.field("busy_ns", pa.int64()),  # its kernels' run time; null without `--busy`
        pa.field("flops", pa.int64()),  # null without `--cost`, and where an operation is unknown
        pa.field("bytes_read", pa.int64()),  # from outside the call, each byte once
        pa.field("bytes_written", pa.int64()),  # for use outside the call
        pa.field("memory_peak_bytes", pa.int64()),  # above what was allocated as it began; null without `--memory`
        pa.field("memory_delta_bytes", pa.int64()),  # allocated at its end less at its beginning
        pa.field("error", pa.string()),  # the exception's class name where forward raised
    ]
)
"""The columns of the Parquet file, a row a call, in the order in which calls began."""

COLLECTIONS = pa.schema(
    [
        pa.field("call", pa.int64(), nullable=False),  # the innermost call that it ran in; -1 outside of all
        pa.field("thread", pa.int32(), nullable=False),
        pa.field("generation", pa.int32(), nullable=False),  # 0, 1 or 2, the whole heap
        pa.field("host_start_ns", pa.int64(), nullable=False),  # on the time line of the calls
        pa.field("host_ns", pa.int64(), nullable=False),
    ]
)
"""Python's garbage collections in a run, in the order in which they began. No module's self time holds them."""
