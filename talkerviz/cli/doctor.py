"""`talkerviz doctor` and `talkerviz presets`: what can run here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from talkerviz.analysis.device_peaks import save_peaks
from talkerviz.cli.model_options import Device, device_name
from talkerviz.cli.app import app
from talkerviz.cli.output import check_writable, console
from talkerviz.doctor import diagnose
from talkerviz.recorder.instruments.device_benchmark import measure_peaks
from talkerviz.render.text import amount_text
from talkerviz.talker.files.build import build_talker
from talkerviz.talker.model.config import PRESETS, default_dtype, preset


@app.command()
def presets() -> None:
    """List the talkers that can be built."""
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
        bool, typer.Option("--measure", help="Measure matrix products and copies, some seconds.")
    ] = False,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one.")] = Device.auto,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write what was measured, for --peaks.")] = None,
) -> None:
    """Say what can run here, and how fast the device is."""
    check_writable(output)
    if output and not measure:
        raise ValueError("-o: only what --measure finds is written")
    table = Table(box=None, show_header=False)
    for what, found in diagnose():
        table.add_row(Text(what, style="bold"), Text(found))
    if measure:
        if device is Device.meta:
            raise ValueError("--device meta: nothing is computed there")
        found_peaks = measure_peaks(device_name(device))
        for name, rate in found_peaks.flops.items():
            table.add_row(Text(f"matrix products, {name}", style="bold"), Text(f"{amount_text(rate)}FLOP/s"))
        table.add_row(Text("copies", style="bold"), Text(f"{amount_text(found_peaks.bandwidth)}B/s"))
        if output:
            save_peaks(found_peaks, output)
    console().print(table)
