"""Options that several commands that run a model have."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import Annotated

import torch
import typer

from talkerviz.talker.model.config import PRESETS


class Device(str, enum.Enum):
    """Where it runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    meta = "meta"


class Dtype(str, enum.Enum):
    """What weights are."""

    bfloat16 = "bfloat16"
    float32 = "float32"


Preset = Annotated[str | None, typer.Option("--preset", help=f"One of {', '.join(PRESETS)}; lite by default.")]
Checkpoint = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A Qwen3-Omni's folder, for its own weights instead of a preset's.")
]
Inputs = Annotated[Path | None, typer.Option(help="What a thinker gave, from `talkerviz capture`; by default random.")]
WeightsDtype = Annotated[Dtype | None, typer.Option(help="By default the checkpoint's own, or the preset's.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Have torch.compile make code of the talker's layers; slow to begin.")
]
Fused = Annotated[bool, typer.Option("--fused", help="Run each layer as few kernels, for one stream on a CUDA device.")]
Graphs = Annotated[bool, typer.Option("--graphs", help="Speak by replaying a CUDA graph of a frame.")]


def check_positive(value: float | None) -> float | None:
    """Reject a number that is not above 0, is infinite or is none; typer's own ranges let NaN through."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"must be above 0 and finite, not {value}")
    return value


def option_of(name: str) -> str:
    """The option for something, as users write it."""
    return "--compile" if name == "compiled" else f"--{name.replace('_', '-')}"


def device_name(device: Device) -> str:
    """Where to run, as torch names it."""
    if device is Device.auto:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device is Device.cuda and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device; use --device cpu")
    return str(device.value)


def torch_dtype(dtype: Dtype | None) -> torch.dtype | None:
    """A dtype as torch has it; None where none was asked for."""
    known: dict[Dtype, torch.dtype] = {Dtype.bfloat16: torch.bfloat16, Dtype.float32: torch.float32}
    return known[dtype] if dtype else None
