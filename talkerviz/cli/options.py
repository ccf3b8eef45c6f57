"""Arguments and options that several commands have."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from talkerviz.graph.view import MOST_BOXES
from talkerviz.render.formats import FORMATS


class Device(str, enum.Enum):
    """Where it runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    meta = "meta"


class Edges(str, enum.Enum):
    """What an arrow is."""

    flow = "flow"
    calls = "calls"


TracePath = Annotated[Path, typer.Argument(metavar="TRACE", help="A file that `talkerviz trace` wrote.")]
Phase = Annotated[str | None, typer.Option(help="Only this phase, such as prefill or decode.")]
Depth = Annotated[int | None, typer.Option(min=0, help="Only calls nested at most this deep.")]
Format = typer.Option("-f", "--format", help=f"One of {', '.join(FORMATS)}.")
ArrowsAre = Annotated[
    Edges | None, typer.Option("--edges", help="Where tensors go, or call order; by default flow if it was recorded.")
]
MaxNodes = Annotated[
    int | None, typer.Option(min=1, help=f"No more boxes: what does not fit is folded; {MOST_BOXES} by default.")
]


def check_format(fmt: str) -> None:
    """Say so before anything else if there is no such format."""
    if fmt not in FORMATS:
        raise ValueError(f"unknown format {fmt!r}: choose from {', '.join(FORMATS)}")


def device_name(device: Device) -> str:
    """Where to run, as torch names it."""
    if device is Device.auto:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device is Device.cuda and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device; use --device cpu")
    return str(device.value)
