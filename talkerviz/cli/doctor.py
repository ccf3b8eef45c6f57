"""`talkerviz doctor` and `talkerviz presets`: capabilities of this machine and the built-in models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from talkerviz.cli.app import app
from talkerviz.cli.model_options import ComputeDevice, device_name
from talkerviz.cli.output import check_writable, console
from talkerviz.doctor import diagnose
from talkerviz.recorder.instruments.device_benchmark import measure_peaks
from talkerviz.recorder.instruments.device_peaks import save_peaks
from talkerviz.render.text import amount_text
from talkerviz.talker.files.build import build_talker
from talkerviz.talker.model.config import PRESETS, default_dtype, preset


@app.command()
def presets() -> None:
    """List the built-in model sizes, for --preset."""
    table = Table(box=None, header_style="bold")
    for column in ("preset", "parameters", "dtype", "weights", "layers", "hidden", "experts", "expert width"):
        table.add_column(column, justify="left" if column in ("preset", "dtype") else "right")
    for name in PRESETS:
        config, dtype = preset(name), default_dtype(name)
        parameters = sum(p.numel() for p in build_talker(config, device="meta").parameters())
        table.add_row(
            name,
            f"{parameters:,}",
            str(dtype).removeprefix("torch."),
            f"{parameters * dtype.itemsize / 1e9:.2f} GB",
            f"{config.text.num_hidden_layers} + {config.code_predictor.num_hidden_layers}",
            str(config.text.hidden_size),
            f"{config.text.num_experts_per_tok} of {config.text.num_experts}",
            str(config.text.moe_intermediate_size),
        )
    console().print(table)


@app.command()
def doctor(
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", metavar="", help="Measure the peak rates of matrix products and copies; takes seconds."
        ),
    ] = False,
    device: ComputeDevice = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="JSON file to write the measured peaks to, for `trace --peaks`."
        ),
    ] = None,
) -> None:
    """Report what can run on this machine, and how fast the device is."""
    check_writable(output)
    if output and not measure:
        raise ValueError("-o: nothing to write without --measure; give --measure")
    table = Table(box=None, show_header=False)
    for name, finding in diagnose():
        table.add_row(Text(name, style="bold"), Text(finding))
    if measure:
        if device == "meta":
            raise ValueError("--device meta: it computes no values; use cpu or cuda")
        peaks = measure_peaks(device_name(device))
        for dtype, rate in peaks.flops.items():
            table.add_row(Text(f"matrix products, {dtype}", style="bold"), Text(f"{amount_text(rate)}FLOP/s"))
        table.add_row(Text("copies", style="bold"), Text(f"{amount_text(peaks.bandwidth)}B/s"))
        if output:
            save_peaks(peaks, output)
    console().print(table)
    if output:
        console().print(f"peaks of {device_name(device)} -> {output}", highlight=False, soft_wrap=True)
