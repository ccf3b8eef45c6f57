"""`talkerviz speak`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from torch import Tensor

from talkerviz.atomic_file import descriptor_of
from talkerviz.cli.app import app
from talkerviz.cli.model_options import (
    INPUT_PANEL,
    Checkpoint,
    Compile,
    ComputeDevice,
    Fused,
    Graphs,
    Inputs,
    Preset,
    Seed,
    Speaker,
    WeightFormat,
    WeightsDtype,
    check_positive,
    compile_choice,
    device_name,
    option_name,
    torch_dtype,
)
from talkerviz.cli.output import check_no_terminal, check_writable, console
from talkerviz.cli.streams import print_message
from talkerviz.progress import byte_progress, frame_progress
from talkerviz.render.text import factor_text, share_text, time_text
from talkerviz.talker.files.audio_file import AudioFile, AudioFormat, audio_format_of
from talkerviz.talker.files.codes_file import read_codes
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.generation.streaming_audio import (
    AS_TRANSFORMERS,
    CHUNK_FRAMES,
    SpeechProgress,
    stream_codes,
    stream_speech,
)
from talkerviz.talker.model.code2wav_config import SAMPLE_RATE
from talkerviz.talker.model.talker import Acceleration
from talkerviz.targets import OnFrame, code2wav_config_of, code2wav_of, talker_of

_STDOUT = 1  # its descriptor
_MAX_FRAMES = 4096  # the limit of transformers' own talker
_SAMPLING_PANEL = "Sampling"
_STREAMING_PANEL = "Streaming"
_PRESET_FRAMES = 50  # 4 s; random weights hardly ever come to an end


@app.command()
def speak(
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", help="File to write: .wav, or .pcm without header; `-` for stdout."
        ),
    ],
    preset_name: Preset = None,
    checkpoint: Checkpoint = None,
    inputs: Inputs = None,
    codes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=INPUT_PANEL,
            help="JSON file of codes to speak, as `trace talker --codes` writes it; without the talker.",
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=INPUT_PANEL,
            help="Maximum number of 80 ms frames; "
            f"by default {_PRESET_FRAMES} with random weights, {_MAX_FRAMES} with a checkpoint or codes.",
        ),
    ] = None,
    speaker: Speaker = None,
    seed: Seed = 0,
    temperature: Annotated[
        float | None,
        typer.Option(
            callback=check_positive,
            metavar="X",
            rich_help_panel=_SAMPLING_PANEL,
            help="Sampling temperature; 0.9 by default, as in transformers.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_SAMPLING_PANEL,
            help="Number of most likely codes to sample from; 50 by default.",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            callback=check_positive,
            metavar="X",
            rich_help_panel=_SAMPLING_PANEL,
            help="Probability mass of the codes to sample from; 1 by default.",
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            callback=check_positive,
            metavar="X",
            rich_help_panel=_SAMPLING_PANEL,
            help="Penalty on codes already spoken; 1.05 by default, 1 is none.",
        ),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy", metavar="", rich_help_panel=_SAMPLING_PANEL, help="Take the most likely codes, do not sample."
        ),
    ] = False,
    chunk_frames: Annotated[
        int,
        typer.Option(min=1, metavar="N", rich_help_panel=_STREAMING_PANEL, help="Greatest number of frames per chunk."),
    ] = CHUNK_FRAMES,
    audio_format: Annotated[
        AudioFormat | None,
        typer.Option(
            "-f",
            "--format",
            metavar="",
            rich_help_panel=_STREAMING_PANEL,
            help="wav, or pcm without header; by the file's suffix, wav for stdout.",
        ),
    ] = None,
    device: ComputeDevice = "auto",
    dtype: WeightsDtype = None,
    compile_layers: Compile = False,
    fused: Fused = False,
    graphs: Graphs = False,
    weight_format: WeightFormat = None,
) -> None:
    """Speak 24 kHz, 16 bit, mono sound, chunk by chunk while codes are generated, and print latency and speed."""
    audio_format = audio_format or audio_format_of(output)
    check_writable(output)
    check_no_terminal(str(output), "sound")
    if device == "meta":
        raise ValueError("--device meta: it computes no values; use cpu or cuda")
    if preset_name is not None and checkpoint:
        raise ValueError("--preset: --checkpoint says which weights they are; give one of them")
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    acceleration = Acceleration(compile_layers, fused, graphs)
    chosen = {**drawn, "repetition_penalty": repetition_penalty}
    if codes:
        _reject(
            {
                "inputs": inputs,
                "speaker": speaker,
                "greedy": greedy or None,
                **dict.fromkeys(acceleration.enabled(), True),
                "weights": weight_format,
                **chosen,
            },
            "not with --codes, which replaces the talker",
        )
    if greedy:
        _reject(drawn, "not with --greedy, which does not sample")
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    sampling = replace(AS_TRANSFORMERS, do_sample=not greedy, seed=seed, **given)

    source: str | Path = checkpoint or ("lite" if preset_name is None else preset_name)
    most = frames or (_MAX_FRAMES if checkpoint or codes else _PRESET_FRAMES)
    weights = device_name(device), torch_dtype(dtype)
    codec = code2wav_config_of(source)
    if codes:
        rows = read_codes(codes, codec)[:most]
        come, most = iter(rows), len(rows)
    else:
        scenario = Scenario(speaker=speaker or "ethan", frames=most, seed=seed)
        with byte_progress("talker", True) as on_bytes:
            int8 = weight_format == "int8"
            loaded = talker_of(source, "native", *weights, scenario, inputs, on_bytes, acceleration, int8=int8)
        if choice := compile_choice(loaded.facts):
            print_message(choice)
        if loaded.config.num_code_groups != codec.num_quantizers:
            made, taken = loaded.config.num_code_groups, codec.num_quantizers
            raise ValueError(f"{source}: its talker makes {made} codes a frame, and its code2wav takes {taken}")
        come = stream_codes(loaded.talker, loaded.config, loaded.thinker, scenario.speaker, most, sampling)
    with byte_progress("code2wav", True) as on_bytes:
        code2wav = code2wav_of(source, *weights, seed, on_bytes)
    speech, stopped = SpeechProgress(), False
    try:
        with AudioFile(output, audio_format) as audio, frame_progress(most) as on_frame:
            if not checkpoint:
                print_message("the weights are random: this is noise, not speech; give --checkpoint")
            elif not codes and not inputs:
                print_message("the inputs are random: give --inputs from `talkerviz capture`")
            counted = _counted(come, on_frame)
            stream_speech(code2wav, counted, audio.add, chunk_frames, progress=speech)
    except KeyboardInterrupt:
        stopped = True
    except Exception as error:
        if isinstance(error, OSError) and error.filename == str(output) and not speech.samples:
            raise
        if isinstance(error, BrokenPipeError) and error.filename is None:
            raise  # the reader of stdout has enough
        raise ValueError(f"stopped: {_reason(error)}; {_kept(speech, output)}") from error
    if stopped and not speech.samples:
        raise typer.Abort(_kept(speech, output))
    terminal = console(stderr=_is_stdout(output))
    for line in _summary_lines(speech, output, with_talker=not codes):
        terminal.print(Text(line), soft_wrap=True)
    if stopped:
        raise typer.Abort(_kept(speech, output))
    if speech.frames == most and not codes:
        terminal.print(Text(f"Ended by --frames {most:,}, not by the talker.", style="dim"), soft_wrap=True)


def _reject(options: Mapping[str, Any], reason: str) -> None:
    """Reject options that were given."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{option_name(name)}: {reason}")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _is_stdout(output: Path) -> bool:
    return str(output) == "-" or descriptor_of(output) == _STDOUT


def _name(output: Path) -> str:
    return "stdout" if str(output) == "-" else str(output)


def _kept(speech: SpeechProgress, output: Path) -> str:
    """Describe what an interrupted run has written."""
    name = _name(output)
    return f"the sound until then is in {name}" if speech.samples else f"nothing was spoken, {name} is not written"


def _counted(frames: Iterator[Tensor], on_frame: OnFrame) -> Iterator[Tensor]:
    for done, frame in enumerate(frames, start=1):
        on_frame(done)
        yield frame


def _summary_lines(speech: SpeechProgress, output: Path, *, with_talker: bool) -> Iterator[str]:
    """Yield the summary: duration, latency and speed."""
    seconds = speech.samples / SAMPLE_RATE
    yield f"{seconds:,.2f} s of speech, {speech.frames:,} frames -> {_name(output)}"
    if speech.first_ns is None:
        return
    speed = factor_text(seconds * 1e9 / speech.total_ns)
    yield f"first audio after {time_text(speech.first_ns)}; {speed} real time"
    if with_talker:
        parts = {"talker": speech.talker_ns, "code2wav": speech.code2wav_ns}
        yield ", ".join(f"{part} {time_text(ns)} ({share_text(ns / speech.total_ns)})" for part, ns in parts.items())
