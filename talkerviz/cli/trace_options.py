"""Options of `talkerviz trace` that every target has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

RUNS_PANEL = "Runs"
SCOPE_PANEL = "Recorded modules"
MEASURES_PANEL = "Measurements"
OUTPUT_PANEL = "Output"


Via = Literal["auto", "tap", "hooks"]
"""Way in which module calls are intercepted."""


Clock = Literal["auto", "cpu", "cuda", "cuda-all", "device", "device-all", "none"]
"""Clock that times each call."""


@dataclass(frozen=True)
class RecordingOptions:
    """Options of the recording: each field is a command-line option, with its help text."""

    warmup: Annotated[
        int, typer.Option(min=0, metavar="N", rich_help_panel=RUNS_PANEL, help="Number of unrecorded warm-up runs.")
    ] = 0
    repeat: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=RUNS_PANEL,
            help="Number of recorded runs; `talkerviz show --runs` compares them.",
        ),
    ] = 1
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            rich_help_panel=SCOPE_PANEL,
            help="Record only modules whose path matches, such as '*.self_attn*'; repeatable.",
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", rich_help_panel=SCOPE_PANEL, help="Skip modules whose path matches; repeatable."
        ),
    ] = None
    depth: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=SCOPE_PANEL,
            help="Maximum depth below the root module; unlimited by default.",
        ),
    ] = None
    via: Annotated[
        Via,
        typer.Option(
            rich_help_panel=SCOPE_PANEL,
            help="Intercept calls at nn.Module.__call__ (tap) or with forward hooks; auto is tap.",
        ),
    ] = "auto"
    clock: Annotated[
        Clock,
        typer.Option(
            rich_help_panel=MEASURES_PANEL,
            help="Clock that times calls; auto is cuda or device (any accelerator) where the model is on one, -all"
            " stamps every call there and costs more, none records shapes only.",
        ),
    ] = "auto"
    flow: Annotated[
        bool,
        typer.Option(
            "--flow/--no-flow",
            metavar="",
            rich_help_panel=MEASURES_PANEL,
            help="Track tensors between calls, in an extra run.",
        ),
    ] = True
    cost: Annotated[
        bool,
        typer.Option(
            "--cost", metavar="", rich_help_panel=MEASURES_PANEL, help="Count FLOP and bytes per call, in an extra run."
        ),
    ] = False
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            metavar="",
            rich_help_panel=MEASURES_PANEL,
            help="Measure device memory per call, in an extra run.",
        ),
    ] = False
    busy: Annotated[
        bool,
        typer.Option(
            "--busy",
            metavar="",
            rich_help_panel=MEASURES_PANEL,
            help="Measure kernel time per call on the device, in an extra run.",
        ),
    ] = False
    nvtx: Annotated[
        bool,
        typer.Option("--nvtx", metavar="", rich_help_panel=MEASURES_PANEL, help="Add NVTX ranges for Nsight Systems."),
    ] = False
    peaks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=MEASURES_PANEL,
            help="Device peaks for the roofline, from `talkerviz doctor --measure -o FILE`.",
        ),
    ] = None
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="FILE", rich_help_panel=OUTPUT_PANEL, help="Trace file to write; - is stdout."
        ),
    ] = "run.parquet"
