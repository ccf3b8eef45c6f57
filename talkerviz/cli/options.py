"""Arguments and options that several commands have."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from talkerviz.graph.view import MOST_BOXES
from talkerviz.render.formats import FORMATS
from talkerviz.render.tables import Rows
from talkerviz.talker.config import PRESETS


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


class Edges(str, enum.Enum):
    """What an arrow is."""

    flow = "flow"
    calls = "calls"


class By(str, enum.Enum):
    """What a row of a table stands for."""

    module = "module"
    klass = "class"
    phase = "phase"
    part = "part"
    layer = "layer"
    frame = "frame"
    call = "call"


class Sort(str, enum.Enum):
    """Which row comes first."""

    self_ = "self"
    total = "total"
    calls = "calls"


class Across(str, enum.Enum):
    """What a table sets side by side."""

    phase = "phase"
    part = "part"
    rank = "rank"


TracePath = Annotated[Path, typer.Argument(metavar="TRACE", help="A file that `talkerviz trace` wrote.")]
Phase = Annotated[str | None, typer.Option(help="Only this phase, such as prefill or decode.")]
Rank = Annotated[int | None, typer.Option(min=0, help="Only this rank, of a trace that `merge` made.")]
Depth = Annotated[int | None, typer.Option(min=0, help="Only calls nested at most this deep.")]
Preset = Annotated[str | None, typer.Option("--preset", help=f"One of {', '.join(PRESETS)}; lite by default.")]
Checkpoint = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A Qwen3-Omni's folder, for its own weights instead of a preset's.")
]
Inputs = Annotated[Path | None, typer.Option(help="What a thinker gave, from `talkerviz capture`; by default random.")]
WeightsDtype = Annotated[Dtype | None, typer.Option(help="By default the checkpoint's own, or the preset's.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Have torch.compile make code of the talker's layers; slow to begin.")
]
Graphs = Annotated[bool, typer.Option("--graphs", help="Speak by replaying a CUDA graph of a frame.")]
Format = typer.Option("-f", "--format", help=f"One of {', '.join(FORMATS)}.")
ArrowsAre = Annotated[
    Edges | None, typer.Option("--edges", help="Where tensors go, or call order; by default flow if it was recorded.")
]
MaxNodes = Annotated[
    int | None, typer.Option(min=1, help=f"No more boxes: what does not fit is folded; {MOST_BOXES} by default.")
]
RowsBy = Annotated[By | None, typer.Option("--by", help="What a table's row stands for; by default a module.")]
SetAcross = Annotated[
    Across | None,
    typer.Option(
        help="Set prefill against decode, the talker against its code predictor, or ranks, by module or class."
    ),
]
SortBy = Annotated[
    Sort | None, typer.Option("--sort", help="By default self, but the run's order by phase, part and frame.")
]
Top = Annotated[int | None, typer.Option(min=1, help="Only the first rows.")]


def check_format(fmt: str, formats: Sequence[str] = FORMATS) -> None:
    """Say so before anything else if there is no such format."""
    if fmt not in formats:
        raise ValueError(f"unknown format {fmt!r}: choose from {', '.join(formats)}")


def rows_asked_for(by: By | None, across: Across | None, sort: Sort | None, top: int | None) -> Rows:
    """What a table shall show."""
    return Rows(by.value if by else "module", across.value if across else None, sort.value if sort else None, top)


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
