"""Registry of instruments: clocks and measures by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from talkerviz.recorder.dataflow.offloaded_weights import parameter_devices
from talkerviz.recorder.dataflow.tracker import FlowTracker
from talkerviz.recorder.instruments.base import Instrument, RunContext
from talkerviz.recorder.instruments.cuda_clock import CudaClock
from talkerviz.recorder.instruments.cuda_graph_clock import CudaGraphClock
from talkerviz.recorder.instruments.flop_counter import FlopCounter
from talkerviz.recorder.instruments.kernel_time import KernelTime
from talkerviz.recorder.instruments.memory import DeviceMemory
from talkerviz.recorder.instruments.nvtx import NvtxRanges


@dataclass(frozen=True)
class Kind:
    """A choice of `clock` or `measure`.

    Attributes:
        make: instruments of one recording, from the outermost stamp to the innermost.
        needs_cuda: whether the model must be on a CUDA device.
        one_device: whether the model must be on a single CUDA device.
    """

    make: Callable[[RunContext], Sequence[Instrument]]
    needs_cuda: bool = False
    one_device: bool = False


def _cuda_clock(run: RunContext) -> Sequence[Instrument]:
    clock = CudaClock(run)
    return clock, CudaGraphClock(run, clock)


CLOCKS: dict[str, Kind] = {
    "cpu": Kind(lambda run: ()),
    "cuda": Kind(_cuda_clock, needs_cuda=True),
    "none": Kind(lambda run: ()),
}
"""Clocks by name: `cpu` and `none` need no instrument, since the log takes host times itself."""

MEASURES: dict[str, Kind] = {
    "cost": Kind(lambda run: [FlopCounter(run)]),
    "memory": Kind(lambda run: [DeviceMemory(run)], needs_cuda=True, one_device=True),
    "busy": Kind(lambda run: [KernelTime(run)], needs_cuda=True),
    "flow": Kind(lambda run: [FlowTracker(run)]),
}
"""Measures by name; each slows the run down, and is taken in a run of its own."""


def clock_for(model: nn.Module) -> str:
    """Return the clock that tells most about a model: `cuda` if any parameter is on a CUDA device, else `cpu`."""
    return "cuda" if cuda_devices(model) else "cpu"


def cuda_devices(model: nn.Module) -> tuple[int, ...]:
    """Return the indices of the CUDA devices that hold a model's parameters, or that they are moved to."""
    return tuple(sorted({device.index or 0 for device in parameter_devices(model) if device.type == "cuda"}))


def all_cuda_devices() -> tuple[int, ...]:
    """Return the indices of the CUDA devices that torch sees."""
    return tuple(range(torch.cuda.device_count()))


def check_measure(measure: str, devices: Sequence[int]) -> None:
    """Check that a measure is known and possible.

    Args:
        measure: one of `MEASURES`.
        devices: indices of the CUDA devices that hold the model.

    Raises:
        ValueError: unknown, or not possible on these devices.
    """
    if measure not in MEASURES:
        raise ValueError(f"cannot measure {measure!r}: choose from {', '.join(MEASURES)}")
    kind = MEASURES[measure]
    if kind.needs_cuda and not devices:
        raise ValueError(f"{measure!r} needs a model on a CUDA device")
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
    if CLOCKS[clock].needs_cuda and not run.devices:
        raise ValueError(f"clock {clock!r} needs a model on a CUDA device")
    if measure is not None:
        check_measure(measure, run.devices)
    instruments: list[Instrument] = [NvtxRanges(run)] if nvtx else []
    instruments += CLOCKS[clock].make(run)
    if measure is not None:
        instruments += MEASURES[measure].make(run)
    return instruments
