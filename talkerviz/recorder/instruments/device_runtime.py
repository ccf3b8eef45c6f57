"""Runtime of an accelerator: the functions that the device clock needs, from torch or from the vendor's library."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from talkerviz.recorder.tap import Tap

_FUNCTIONS = {
    "create": "EventCreateWithFlags",
    "record": "EventRecord",
    "query": "EventQuery",
    "elapsed": "EventElapsedTime",
    "destroy": "EventDestroy",
    "get_device": "GetDevice",
    "set_device": "SetDevice",
    "is_capturing": "StreamIsCapturing",
    "last_error": "GetLastError",
}
"""Functions of `native/device_stamps.c`, by their names in CUDA's and HIP's runtime without the prefix."""


@dataclass(frozen=True)
class DeviceRuntime:
    """Functions of an accelerator's runtime.

    Attributes:
        event: makes a timed event with the methods of `torch.Event`; if its argument is true, one that a graph records
            at each replay.
        stream_of: returns the current stream of a device: its address if there are `functions`, else a stream object.
        current: returns the index of the current device.
        synchronize: waits for a device.
        capturing: returns whether the current stream captures a graph; None if none can.
        functions: addresses of the runtime's functions by the names in `_FUNCTIONS`; None to use event objects.
        ring: number of events that are made beforehand on each device.
    """

    event: Callable[[bool], Any]
    stream_of: Callable[[int], Any]
    current: Callable[[], int]
    synchronize: Callable[[int], None]
    capturing: Callable[[], bool] | None = None
    functions: Mapping[str, int] | None = None
    ring: int = 512


def accelerator_name(device: torch.device) -> str | None:
    """Return the name of an accelerator as its driver reports it; None if torch cannot ask."""
    try:
        return str(torch.get_device_module(device.type).get_device_name(device.index or 0))
    except (AttributeError, RuntimeError, AssertionError):  # backends differ in what they have
        return None


def runtime_of(device_type: str) -> DeviceRuntime:
    """Return the runtime of an accelerator by torch's name for it, such as `cuda` (also of ROCm), `xpu` or `mps`."""
    return _cuda_runtime() if device_type == "cuda" else _torch_runtime(device_type)


def _torch_runtime(device_type: str) -> DeviceRuntime:
    return DeviceRuntime(
        event=lambda external: torch.Event(device_type, enable_timing=True),
        # Functions in C, as the ones of `torch.accelerator` in Python take a microsecond.
        stream_of=torch._C._accelerator_getStream,
        current=torch._C._accelerator_getDeviceIndex,
        synchronize=lambda device: torch.accelerator.synchronize(device),
    )


def _cuda_runtime() -> DeviceRuntime:
    def event(external: bool) -> Any:
        make: Any = torch.cuda.Event  # not typed
        # Not every torch has external events; only captures need them.
        return make(enable_timing=True, external=True) if external else make(enable_timing=True)

    # Events of `torch.cuda.Event` take streams of its own kind, which are made in Python.
    functions = native_functions(*_cuda_library()) if sys.platform == "linux" and Tap is not None else None
    return DeviceRuntime(
        event=event,
        stream_of=torch.cuda.current_stream if functions is None else torch._C._cuda_getCurrentRawStream,
        current=torch._C._cuda_getDevice,
        synchronize=lambda device: torch.cuda.synchronize(device),
        capturing=torch._C._cuda_isCurrentStreamCapturing,
        functions=functions,
        ring=4096,  # a frame of a large talker takes 3,242
    )


def _cuda_library() -> tuple[Path, str]:
    """Return torch's library that is linked with the runtime, and the prefix of the runtime's functions."""
    name, prefix = ("c10_hip", "hip") if torch.version.hip else ("c10_cuda", "cuda")
    return Path(torch.__file__).parent / "lib" / f"lib{name}.so", prefix


def native_functions(library: Path, prefix: str) -> dict[str, int] | None:
    """Return the addresses of a runtime's functions, by the names in `_FUNCTIONS`; None if any is not found.

    They are looked up through a library that is loaded already, so that they are of the runtime that it is linked with
    and of no other that happens to be installed.

    Args:
        library: the loaded library.
        prefix: prefix of the functions, `cuda` or `hip`.
    """
    try:
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        found = {name: ctypes.cast(loaded[prefix + symbol], ctypes.c_void_p) for name, symbol in _FUNCTIONS.items()}
    except (OSError, AttributeError):
        return None
    return {name: function.value or 0 for name, function in found.items()}
