"""`talkerviz load`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table
from rich.text import Text

from talkerviz.atomic_file import write_text
from talkerviz.cli.app import app
from talkerviz.cli.model_options import (
    INPUT_PANEL,
    Checkpoint,
    ComputeDevice,
    Inputs,
    Preset,
    Seed,
    Speaker,
    WeightsDtype,
    check_positive,
    device_name,
    torch_dtype,
)
from talkerviz.cli.output import check_writable, console, print_written
from talkerviz.cli.streams import print_message
from talkerviz.progress import byte_progress, frame_progress
from talkerviz.recorder.instruments.device_benchmark import device_name as hardware_name
from talkerviz.render.text import factor_text, share_text, time_text
from talkerviz.talker.generation.load import Load, Request, is_as_alone, measure_load
from talkerviz.talker.generation.scenario import Scenario, scenario_inputs
from talkerviz.talker.generation.streaming_audio import AS_TRANSFORMERS, CHUNK_FRAMES
from talkerviz.talker.model.code2wav import StreamingCode2Wav
from talkerviz.targets import code2wav_of, talker_of

_LOAD_PANEL = "Load"
_LIMIT_PANEL = "Limits"
_MAX_STREAMS = 1024  # beyond that caches alone fill the memory

_PARTS = {
    "waiting": "waiting_ns",
    "setup": "setup_ns",
    "prefill": "prefill_ns",
    "first chunk": "first_chunk_ns",
    "code2wav": "code2wav_ns",
}
"""Parts of the time to first audio: heading and attribute of `Answer`."""


@app.command()
def load(
    preset_name: Preset = None,
    checkpoint: Checkpoint = None,
    inputs: Inputs = None,
    speaker: Speaker = None,
    frames: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=INPUT_PANEL,
            help="Maximum number of 80 ms frames per answer; with random weights an answer has half of them to all.",
        ),
    ] = 50,
    seed: Seed = 0,
    streams: Annotated[
        str,
        typer.Option(
            metavar="N,N,...", rich_help_panel=_LOAD_PANEL, help="Numbers of streams at once, each measured by itself."
        ),
    ] = "1,2,4,8,16",
    requests: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", rich_help_panel=_LOAD_PANEL, help="Number of requests per stream, one after the other."
        ),
    ] = 2,
    interval: Annotated[
        str,
        typer.Option(
            metavar="TIME", rich_help_panel=_LOAD_PANEL, help="Time between the arrivals of two streams, such as 100ms."
        ),
    ] = "0ms",
    chunk_frames: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=_LOAD_PANEL,
            help="Number of frames of the longest chunk of sound; chunks grow from 1 frame.",
        ),
    ] = CHUNK_FRAMES,
    device: ComputeDevice = "auto",
    dtype: WeightsDtype = None,
    fail_ttfa: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            rich_help_panel=_LIMIT_PANEL,
            help="Exit with code 1 if the p95 of the time to first audio is above this, such as 300ms.",
        ),
    ] = None,
    fail_rtf: Annotated[
        float | None,
        typer.Option(
            callback=check_positive,
            metavar="X",
            rich_help_panel=_LIMIT_PANEL,
            help="Exit with code 1 if the p95 of the real-time factor is below this; 1 is as fast as speech is played.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Markdown file to write the tables to.")
    ] = None,
) -> None:
    """Measure latency and speed of many streams at once, which join and leave while others speak."""
    check_writable(output)
    if device == "meta":
        raise ValueError("--device meta: it computes no values; use cpu or cuda")
    if preset_name is not None and checkpoint:
        raise ValueError("--preset: --checkpoint says which weights they are; give one of them")
    counts = _stream_counts(streams)
    interval_ns = _time_ns("--interval", interval)
    limit_ns = None if fail_ttfa is None else _time_ns("--fail-ttfa", fail_ttfa)
    source: str | Path = checkpoint or ("lite" if preset_name is None else preset_name)
    weights = device_name(device), torch_dtype(dtype)
    scenario = Scenario(speaker=speaker or "ethan", frames=frames, seed=seed)
    with byte_progress("talker", True) as on_bytes:
        loaded = talker_of(source, "native", *weights, scenario, inputs, on_bytes)
    with byte_progress("code2wav", True) as on_bytes:
        code2wav = code2wav_of(source, *weights, seed, on_bytes)
    talker: Any = loaded.talker
    voice = loaded.config.speaker(scenario.speaker)
    weight = talker.codec_head.weight

    def request(number: int) -> Request:
        """Make a request whose lengths depend on its number."""
        lengths = replace(
            scenario, prompt_tokens=11 + number % 5, text_tokens=20 + number % 3, seed=scenario.seed + number
        )
        thinker = loaded.thinker if inputs else scenario_inputs(lengths, loaded.config, weight.device, weight.dtype)
        # Random weights hardly ever come to an end: without this all rows would leave at once.
        most = frames if checkpoint else frames - number * 7 % (frames // 2 + 1)
        return Request(thinker, most, lengths.seed)

    def measure(asked: list[list[Request]], on_frame: Callable[[int], None]) -> Load:
        return measure_load(
            talker,
            voice,
            lambda: StreamingCode2Wav(code2wav).decode,
            asked,
            AS_TRANSFORMERS,
            chunk_frames,
            interval_ns,
            on_frame,
        )

    measure([[replace(request(0), frames=3)]], lambda done: None)  # libraries load, memory is found
    loads = []
    for count in counts:
        asked = [[request(stream + count * turn) for turn in range(requests)] for stream in range(count)]
        with frame_progress(sum(each.frames for each in chain(*asked))) as on_frame:
            loads.append(measure(asked, on_frame))
    if any(not each.answers for each in loads):
        raise ValueError("an answer ended before its first frame: there is no sound to measure")
    same = [is_as_alone(talker, voice, each.answers[-1], AS_TRANSFORMERS) for each in loads]
    tables = _tables(loads, same)
    terminal = console()
    for rows in tables:
        terminal.print(_rich_table(rows))
    if output:
        kind = str(weight.dtype).removeprefix("torch.")
        where = f"{hardware_name(weights[0])}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
        heading = f"{source}, {kind}, {where}; {requests} answers a stream of at most {frames} frames."
        write_text(output, _markdown(heading, tables))
        print_written(output)
    failures = [*_late(loads, limit_ns, fail_ttfa), *_slow(loads, fail_rtf)]
    for failure in failures:
        print_message(failure)
    if failures:
        raise typer.Exit(1)


def _stream_counts(text: str) -> list[int]:
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(0 < count <= _MAX_STREAMS for count in counts):
        raise ValueError(f"--streams {text}: give numbers from 1 to {_MAX_STREAMS}, such as 1,4,16")
    return sorted(set(counts))


def _time_ns(option: str, text: str) -> int:
    """Read a time such as 300ms or 1.5s."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s)", text.strip())
    if match is None:
        raise ValueError(f"{option} {text}: give a time such as 300ms or 1.5s")
    return round(float(match[1]) * {"ms": 1e6, "s": 1e9}[match[2]])


def _first_audio(load: Load, percentile: float) -> float:
    return float(np.percentile([answer.first_audio_ns for answer in load.answers], percentile))


def _real_time(load: Load, percentile: float) -> float:
    """Return the factor that so many per cent of the answers reach."""
    return float(np.percentile([answer.real_time_factor for answer in load.answers], 100 - percentile))


def _tables(loads: Sequence[Load], same: Sequence[bool]) -> list[list[list[str]]]:
    """Return the rows of two tables, the heading first: what listeners notice, and where the time goes."""
    percentiles = (50, 95, 99)
    heard = [
        [
            "streams",
            *(f"first audio p{percentile}" for percentile in percentiles),
            *(f"real time p{percentile}" for percentile in percentiles),
            "stalls",
            "in time",
            "frames/s",
            "of the first",
            "as alone",
        ]
    ]
    spent = [["streams", *_PARTS, "code2wav in all"]]
    rates = [each.frames / each.total_ns * 1e9 for each in loads]
    for each, rate, as_alone in zip(loads, rates, same, strict=True):
        stalls = [stall for answer in each.answers for stall in answer.stalls_ns]
        heard.append(
            [
                f"{each.streams}",
                *(time_text(_first_audio(each, percentile)) for percentile in percentiles),
                *(factor_text(_real_time(each, percentile)) for percentile in percentiles),
                f"{len(stalls)}, {time_text(sum(stalls))}" if stalls else "0",
                f"{each.streams_in_time} of {each.streams}",
                f"{rate:.3g}",
                factor_text(rate / rates[0]),
                "yes" if as_alone else "no",
            ]
        )
        spent.append(
            [
                f"{each.streams}",
                *(time_text(np.mean([getattr(answer, name) for answer in each.answers])) for name in _PARTS.values()),
                share_text(each.code2wav_ns / each.total_ns),
            ]
        )
    return [heard, spent]


def _rich_table(rows: list[list[str]]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def _markdown(heading: str, tables: list[list[list[str]]]) -> str:
    lines = [heading]
    for head, *rows in tables:
        lines += ["", *(f"| {' | '.join(cells)} |" for cells in (head, ["---:"] * len(head), *rows))]
    return "\n".join(lines) + "\n"


def _late(loads: Sequence[Load], limit_ns: int | None, text: str | None) -> list[str]:
    """Say at which numbers of streams answers are heard too late."""
    if limit_ns is None:
        return []
    late = {each.streams: _first_audio(each, 95) for each in loads if _first_audio(each, 95) > limit_ns}
    return [
        f"{streams} at once: first audio p95 {time_text(ns)}, above --fail-ttfa {text}" for streams, ns in late.items()
    ]


def _slow(loads: Sequence[Load], limit: float | None) -> list[str]:
    """Say at which numbers of streams answers are spoken too slowly."""
    if limit is None:
        return []
    slow = {each.streams: _real_time(each, 95) for each in loads if _real_time(each, 95) < limit}
    return [
        f"{streams} at once: real time p95 {factor_text(x)}, below --fail-rtf {limit:g}" for streams, x in slow.items()
    ]
