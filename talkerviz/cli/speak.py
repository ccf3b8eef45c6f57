"""`talkerviz speak`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from torch import Tensor

from talkerviz.cli.model_options import (
    Checkpoint,
    Compile,
    Device,
    Fused,
    Graphs,
    Inputs,
    Preset,
    WeightsDtype,
    check_positive,
    device_name,
    option_of,
    torch_dtype,
)
from talkerviz.cli.app import app
from talkerviz.cli.output import check_writable, console
from talkerviz.cli.streams import print_message
from talkerviz.progress import byte_progress, frame_progress
from talkerviz.render.text import factor_text, share_text, time_text
from talkerviz.talker.files.codes_file import read_codes
from talkerviz.talker.files.wav import open_wav
from talkerviz.talker.generation.acceleration import Faster
from talkerviz.talker.generation.scenario import Scenario
from talkerviz.talker.generation.streaming_audio import AS_TRANSFORMERS, Speech, say, talk
from talkerviz.talker.model.code2wav import CHUNK_FRAMES, LEFT_CONTEXT, SAMPLE_RATE, samples_of
from talkerviz.targets import OnFrame, code2wav_config_of, code2wav_of, talker_of

# As many as transformers lets its talker speak; random weights hardly ever come to an end.
_MOST_FRAMES = 4096
_FRAMES_OF_NOISE = 50


@app.command()
def speak(
    output: Annotated[Path, typer.Option("-o", "--output", help="The sound: WAV, 24 kHz, 16 bit, mono.")],
    preset_name: Preset = None,
    checkpoint: Checkpoint = None,
    inputs: Inputs = None,
    codes: Annotated[
        Path | None, typer.Option(help="Speak these, from `trace --codes`: the talker is left out.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Frames of 80 ms, at most; {_FRAMES_OF_NOISE} of a preset and {_MOST_FRAMES} else by default."
        ),
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="A voice of the talker; ethan by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws what is random.")] = 0,
    temperature: Annotated[
        float | None,
        typer.Option(callback=check_positive, help="Of drawing codes; 0.9 by default, as transformers has it."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many codes; 50 by default.")] = None,
    top_p: Annotated[
        float | None, typer.Option(callback=check_positive, help="Draw from codes of so much likelihood; 1 by default.")
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            callback=check_positive, help="Make codes less likely once they are spoken; 1.05 by default, 1 does not."
        ),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest codes, and draw none.")] = False,
    chunk_frames: Annotated[int, typer.Option(min=1, help="Sound comes after so many frames.")] = CHUNK_FRAMES,
    left_context: Annotated[
        int, typer.Option(min=0, help="So many frames before a chunk are read with it.")
    ] = LEFT_CONTEXT,
    seamless: Annotated[
        bool, typer.Option("--seamless", help="Keep the 23 ms that transformers leaves out between chunks.")
    ] = False,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one.")] = Device.auto,
    dtype: WeightsDtype = None,
    compile_layers: Compile = False,
    fused: Fused = False,
    graphs: Graphs = False,
) -> None:
    """Speak into a WAV file, chunk by chunk while codes come, and print how soon and how fast that was."""
    check_writable(output)
    if str(output) == "-":
        raise ValueError("-o -: a WAV begins with its length, which is known last; name a file")
    if device is Device.meta:
        raise ValueError("--device meta: nothing is computed there")
    if preset_name is not None and checkpoint:
        raise ValueError("--preset: --checkpoint says which weights they are; give one of them")
    if seamless and not left_context:
        raise ValueError("--seamless: what is left out comes with the left context; --left-context must be 1 or more")
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    faster = Faster(compile_layers, fused, graphs)
    chosen = {**drawn, "repetition_penalty": repetition_penalty}
    if codes:
        _refuse(
            {
                "inputs": inputs,
                "speaker": speaker,
                "greedy": greedy or None,
                **dict.fromkeys(faster.ways(), True),
                **chosen,
            },
            "--codes is what is spoken",
        )
    if greedy:
        _refuse(drawn, "--greedy draws none")
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    sampling = replace(AS_TRANSFORMERS, do_sample=not greedy, seed=seed, **given)

    source: str | Path = checkpoint or ("lite" if preset_name is None else preset_name)
    most = frames or (_MOST_FRAMES if checkpoint or codes else _FRAMES_OF_NOISE)
    weights = device_name(device), torch_dtype(dtype)
    codec = code2wav_config_of(source)
    if codes:
        rows = read_codes(codes, codec)[:most]
        come, most = iter(rows), len(rows)
    else:
        scenario = Scenario(speaker=speaker or "ethan", frames=most, seed=seed)
        with byte_progress("talker", True) as on_bytes:
            loaded = talker_of(source, "native", *weights, scenario, inputs, on_bytes, faster)
        if loaded.config.num_code_groups != codec.num_quantizers:
            made, taken = loaded.config.num_code_groups, codec.num_quantizers
            raise ValueError(f"{source}: its talker makes {made} codes a frame, and its code2wav takes {taken}")
        come = talk(loaded.talker, loaded.config, loaded.thinker, scenario.speaker, most, sampling)
    with byte_progress("code2wav", True) as on_bytes:
        code2wav = code2wav_of(source, *weights, seed, on_bytes)
    speech, stopped = Speech(), False
    try:
        with open_wav(output) as add, frame_progress(most) as on_frame:
            if not checkpoint:
                print_message("the weights are random: this is noise, not speech; give --checkpoint")
            elif not codes and not inputs:
                print_message("what is said is random: give --inputs of a thinker's answer")
            counted = _counted(come, on_frame)
            say(code2wav, counted, add, chunk_frames, left_context, seamless=seamless, speech=speech)
    except KeyboardInterrupt:
        stopped = True
    except Exception as error:
        if isinstance(error, OSError) and error.filename == str(output) and not speech.samples:
            raise
        raise ValueError(f"stopped: {_reason(error)}; {_kept(speech, output)}") from error
    if stopped and not speech.samples:
        raise typer.Abort(_kept(speech, output))
    terminal = console()
    for line in _told(speech, output, with_talker=not codes):
        terminal.print(Text(line), soft_wrap=True)
    left_out = samples_of(codec, speech.frames) - speech.samples if speech.frames else 0
    if left_out:
        lost = f"{time_text(left_out / SAMPLE_RATE * 1e9)} are left out between {speech.chunks:,} chunks"
        terminal.print(Text(f"{lost}, as transformers does; --seamless keeps them", style="dim"), soft_wrap=True)
    if stopped:
        raise typer.Abort(_kept(speech, output))
    if speech.frames == most and not codes:
        terminal.print(Text(f"Ended by --frames {most:,}, not by the talker.", style="dim"), soft_wrap=True)


def _refuse(options: Mapping[str, Any], because: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{option_of(name)}: {because}")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _kept(speech: Speech, output: Path) -> str:
    """Say where the sound of a run that was stopped is."""
    return f"the sound until then is in {output}" if speech.samples else f"nothing was spoken, {output} is not written"


def _counted(frames: Iterator[Tensor], on_frame: OnFrame) -> Iterator[Tensor]:
    for done, frame in enumerate(frames, start=1):
        on_frame(done)
        yield frame


def _told(speech: Speech, output: Path, *, with_talker: bool) -> Iterator[str]:
    """How much was spoken, how soon and how fast."""
    seconds = speech.samples / SAMPLE_RATE
    yield f"{seconds:,.2f} s of speech, {speech.frames:,} frames -> {output}"
    if speech.first_ns is None:
        return
    speed = factor_text(seconds * 1e9 / speech.total_ns)
    yield f"first audio after {time_text(speech.first_ns)}; {speed} real time"
    if with_talker:
        parts = {"talker": speech.talker_ns, "code2wav": speech.code2wav_ns}
        yield ", ".join(f"{part} {time_text(ns)} ({share_text(ns / speech.total_ns)})" for part, ns in parts.items())
