"""Options shared by the commands that build and run a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import torch

MODEL_PANEL = "Model"
INPUT_PANEL = "Input and generation"
SPEED_PANEL = "Acceleration"


Device = Literal["auto", "cpu", "cuda", "xpu", "mps", "npu", "hpu", "meta"]
"""Device that a model runs on."""


Dtype = Literal["bfloat16", "float32"]
"""Data type of the weights."""


Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        rich_help_panel=MODEL_PANEL,
        help="Built-in model size with random weights; lite by default. `talkerviz presets` lists them.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        rich_help_panel=MODEL_PANEL,
        help="Qwen3-Omni checkpoint folder to load weights from, instead of --preset.",
    ),
]
RunDevice = Annotated[
    Device,
    typer.Option(
        "--device",
        rich_help_panel=MODEL_PANEL,
        help="Device to run on; auto is the accelerator that torch finds, meta computes shapes only.",
    ),
]
ComputeDevice = Annotated[
    Device,
    typer.Option(
        "--device", rich_help_panel=MODEL_PANEL, help="Device to run on; auto is the accelerator that torch finds."
    ),
]
WeightsDtype = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        rich_help_panel=MODEL_PANEL,
        help="Data type of the weights; by default that of the checkpoint, preset or config.",
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=INPUT_PANEL,
        help="Thinker outputs written by `talkerviz capture`; random by default.",
    ),
]
Speaker = Annotated[
    str | None, typer.Option(metavar="NAME", rich_help_panel=INPUT_PANEL, help="Voice of the talker; ethan by default.")
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, metavar="N", rich_help_panel=INPUT_PANEL, help="Random seed for weights and inputs."),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        metavar="",
        rich_help_panel=SPEED_PANEL,
        help="Compile the talker's layers with torch.compile, if frames are faster then; the first are slow.",
    ),
]
WeightFormat = Annotated[
    Literal["int8"] | None,
    typer.Option(
        "--weights",
        rich_help_panel=SPEED_PANEL,
        help="Quantise the weights of the talker's layers; int8 is for CPUs, and fastest with --dtype bfloat16.",
    ),
]
Fused = Annotated[
    bool,
    typer.Option(
        "--fused",
        metavar="",
        rich_help_panel=SPEED_PANEL,
        help="Run each layer as a few Triton kernels; CUDA, batch size 1.",
    ),
]
Graphs = Annotated[
    bool,
    typer.Option(
        "--graphs",
        metavar="",
        rich_help_panel=SPEED_PANEL,
        help="Capture one frame as a CUDA graph and replay it for each.",
    ),
]


def check_positive(value: float | None) -> float | None:
    """Reject numbers that are not positive and finite; typer's own ranges let NaN through."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"must be above 0 and finite, not {value}")
    return value


def option_name(field: str) -> str:
    """Return the command-line spelling of an option's Python name."""
    return "--compile" if field == "compiled" else f"--{field.replace('_', '-')}"


def compile_choice(facts: Mapping[str, Any]) -> str | None:
    """Describe which layers --compile has kept, from a target's facts; None if it was not measured."""
    if "compiled_speed" not in facts:
        return None
    speed = f"a compiled frame is {facts['compiled_speed']:.2f} times as fast as an eager one"
    return f"--compile: {speed}: {'compiled' if facts['compiled'] else 'eager'} layers are kept"


def device_name(device: Device) -> str:
    """Return torch's name of a device, with `auto` resolved."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return "cpu" if accelerator is None else accelerator.type
    if device not in ("cpu", "meta") and (accelerator is None or accelerator.type != device):
        raise ValueError(f"--device {device}: torch sees no {device.upper()} device; use --device cpu")
    return device


def torch_dtype(dtype: Dtype | None) -> torch.dtype | None:
    """Return torch's data type, or None for the model's own."""
    import torch

    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype] if dtype else None
