"""Arguments and options that several commands that read traces have."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from talkerviz.graph.view import MOST_BOXES
from talkerviz.render.formats import FORMATS
from talkerviz.render.tables import Rows


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
