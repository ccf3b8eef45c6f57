"""Registry of instruments: clocks and measures by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from talkerviz.recorder.dataflow.offloaded_weights import parameter_devices
from talkerviz.recorder.dataflow.tracker import FlowTracker
from talkerviz.recorder.instruments.base import Instrument, RunContext
from talkerviz.recorder.instruments.cuda_graph_clock import CudaGraphClock
from talkerviz.recorder.instruments.device_clock import SAMPLED_BUDGET, DeviceClock
from talkerviz.recorder.instruments.device_runtime import runtime_of
from talkerviz.recorder.instruments.flop_counter import FlopCounter
from talkerviz.recorder.instruments.kernel_time import KernelTime
from talkerviz.recorder.instruments.memory import DeviceMemory
from talkerviz.recorder.instruments.nvtx import NvtxRanges


@dataclass(frozen=True)
class Kind:
    """A choice of `clock` or `measure`.

    Attributes:
        make: instruments of one recording, from the outermost stamp to the innermost.
        device: accelerator that the model must be on: torch's name, `any`, or empty for none.
        one_device: whether the model must be on a single one.
    """

    make: Callable[[RunContext], Sequence[Instrument]]
    device: str = ""
    one_device: bool = False


def _device_clock(budget: float) -> Callable[[RunContext], Sequence[Instrument]]:
    def make(run: RunContext) -> Sequence[Instrument]:
        clock = DeviceClock(run, runtime_of(run.device_type), budget)
        return (clock, CudaGraphClock(run, clock)) if run.device_type == "cuda" else (clock,)

    return make


CLOCKS: dict[str, Kind] = {
    "cpu": Kind(lambda run: ()),
    "cuda": Kind(_device_clock(SAMPLED_BUDGET), "cuda"),
    "cuda-all": Kind(_device_clock(0), "cuda"),
    "device": Kind(_device_clock(SAMPLED_BUDGET), "any"),
    "device-all": Kind(_device_clock(0), "any"),
    "none": Kind(lambda run: ()),
}
"""Clocks by name: `cpu` and `none` need no instrument, since the log takes host times itself.

`cuda` is `device` on CUDA or ROCm. Those that end in `-all` stamp every call, the others as many as cost little.
"""

MEASURES: dict[str, Kind] = {
    "cost": Kind(lambda run: [FlopCounter(run)]),
    "memory": Kind(lambda run: [DeviceMemory(run)], "any", one_device=True),
    "busy": Kind(lambda run: [KernelTime(run)], "any"),
    "flow": Kind(lambda run: [FlowTracker(run)]),
}
"""Measures by name; each slows the run down, and is taken in a run of its own."""


def clock_for(model: nn.Module) -> str:
    """Return the clock that tells most about a model: `cuda` or `device` if a parameter is on one, else `cpu`."""
    device_type, _ = model_devices(model)
    return "cuda" if device_type == "cuda" else "device" if device_type else "cpu"


def model_devices(model: nn.Module) -> tuple[str, tuple[int, ...]]:
    """Return the accelerator that holds a model's parameters, or that they are moved to.

    Returns:
        Torch's name of it, such as `cuda`, and the indices of its devices; an empty name for none.
    """
    devices = [device for device in parameter_devices(model) if device.type not in ("cpu", "meta")]
    if not devices:
        return "", ()
    device_type = devices[0].type
    return device_type, tuple(sorted({device.index or 0 for device in devices if device.type == device_type}))


def _check_device(name: str, kind: Kind, device_type: str) -> None:
    if kind.device == "cuda" and device_type != "cuda":
        raise ValueError(f"{name} needs a model on a CUDA device")
    if kind.device == "any" and not device_type:
        raise ValueError(f"{name} needs a model on a CUDA device or another accelerator")


def all_devices() -> tuple[str, tuple[int, ...]]:
    """Return the accelerator that torch sees, as `model_devices` does, with all of its devices."""
    if not torch.accelerator.is_available():
        return "", ()
    device = torch.accelerator.current_accelerator()
    return (device.type if device else ""), tuple(range(torch.accelerator.device_count()))


def check_measure(measure: str, device_type: str, devices: Sequence[int]) -> None:
    """Check that a measure is known and possible.

    Args:
        measure: one of `MEASURES`.
        device_type: the accelerator that holds the model; empty for none.
        devices: indices of its devices that do.

    Raises:
        ValueError: unknown, or not possible on these devices.
    """
    if measure not in MEASURES:
        raise ValueError(f"cannot measure {measure!r}: choose from {', '.join(MEASURES)}")
    kind = MEASURES[measure]
    _check_device(repr(measure), kind, device_type)
    if kind.one_device and len(devices) > 1:
        raise ValueError(f"{measure!r} measures one device, and the model is on {len(devices)}")


def make_instruments(clock: str, measure: str | None, nvtx: bool, run: RunContext) -> list[Instrument]:
    """Return new instruments for a recording.

    Args:
        clock: one of `CLOCKS`.
        measure: one of `MEASURES`, or None.
        nvtx: whether to mark calls and frames as NVTX ranges.
        run: the recording.

    Raises:
        ValueError: unknown, or not possible here.
    """
    if clock not in CLOCKS:
        raise ValueError(f"unknown clock {clock!r}: choose from {', '.join(CLOCKS)}")
    _check_device(f"clock {clock!r}", CLOCKS[clock], run.device_type)
    if measure is not None:
        check_measure(measure, run.device_type, run.devices)
    instruments: list[Instrument] = [NvtxRanges(run)] if nvtx else []
    instruments += CLOCKS[clock].make(run)
    if measure is not None:
        instruments += MEASURES[measure].make(run)
    return instruments
