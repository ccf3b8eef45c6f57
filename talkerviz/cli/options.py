"""Arguments and options that several commands that read traces have."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from talkerviz.flowchart.options import MOST_BOXES
from talkerviz.render.registry import FORMATS, SUFFIXES
from talkerviz.render.tables.registry import TableView


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
    request = "request"
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
Format = typer.Option(
    "-f", "--format", help=f"One of {', '.join(FORMATS)}; left out, it is what the file of -o ends in."
)
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


def format_of(fmt: str | None, output: str, formats: Sequence[str] = FORMATS) -> str:
    """The format that was asked for, or else the one that the output's name ends in.

    Raises:
        ValueError: there is no such format, or the name does not say which it is.
    """
    if fmt is not None:
        if fmt not in formats:
            raise ValueError(f"unknown format {fmt!r}: choose from {', '.join(formats)}")
        return fmt
    ending = next((suffix for suffix in SUFFIXES if output.lower().endswith(suffix)), None)
    may_be = [one for one in SUFFIXES[ending] if one in formats] if ending else []
    if len(may_be) == 1:
        return may_be[0]
    raise ValueError(
        f"{'' if output == '-' else f'-o {output}: '}name the format with -f, one of {', '.join(may_be or formats)}"
    )


def table_asked_for(by: By | None, across: Across | None, sort: Sort | None, top: int | None) -> TableView:
    """What a table shall show."""
    return TableView(by.value if by else "module", across.value if across else None, sort.value if sort else None, top)
