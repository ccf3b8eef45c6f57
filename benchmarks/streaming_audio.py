"""Latency, cost and fidelity of streamed audio at published sizes: stateful chunks, and chunks with left context.

    OMP_NUM_THREADS=1 python benchmarks/streaming_audio.py [--frames 100] [--rounds 1] [--talker full:bfloat16]
        [-o reports/benchmarks/streaming-audio.md]

Needs 9 GB of free memory, 4 GB with `--talker lite:float32`; takes about four minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import torch
from interleaved import processor
from speaking import native_talker
from torch import Tensor
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from talkerviz.talker import StreamingCode2Wav, assemble_prompt, build_code2wav, code2wav_config, stream
from talkerviz.talker.generation.scenario import Scenario, scenario_inputs
from talkerviz.talker.generation.streaming_audio import AS_TRANSFORMERS, CHUNK_FRAMES, chunks_of
from talkerviz.talker.model.code2wav_config import SAMPLE_RATE

CONTEXTS = ((25, 25), (25, 72), (8, 25))  # frames of a chunk and of its left context
CHUNKS = (25, 8, 4, 2, 1)


@dataclass
class Decoding:
    """Way to decode a stream, with what was measured.

    Attributes:
        cells: first cells of its row: decoding, chunk, left context.
        first_frames: frames of its first chunk.
        decode: yields (index of the first sample, samples) of each chunk.
        first: seconds of CPU time to the first samples, in each round.
        whole: seconds of CPU time for all frames, in each round.
        audio: the last round's samples; NaN where there are none.
    """

    cells: tuple[str, str, str]
    first_frames: int
    decode: Callable[[], Iterator[tuple[int, Tensor]]]
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    audio: Tensor = field(default_factory=lambda: torch.empty(0))

    def time_once(self, samples: int) -> None:
        """Decode once; `samples` is the number of samples of one pass."""
        gc.collect()
        self.audio = torch.full((samples,), torch.nan)
        start = process_time()
        for number, (begin, audio) in enumerate(self.decode()):
            if number == 0:
                self.first.append(process_time() - start)
            self.audio[begin : begin + len(audio)] = audio
        self.whole.append(process_time() - start)


def decodings_of(codes: Tensor) -> list[Decoding]:
    """Return the ways to decode codes [frames, Q]; the first is one pass of transformers' code2wav."""
    ours = build_code2wav(code2wav_config("full"))
    with torch.device("meta"):
        theirs: Any = Qwen3OmniMoeCode2Wav(Qwen3OmniMoeCode2WavConfig())
    theirs.load_state_dict(ours.state_dict(), assign=True)
    # Buffers that are not in the state.
    theirs.code_offset = torch.arange(codes.shape[1]).view(1, -1, 1) * ours.config.codebook_size
    theirs.pre_transformer.rotary_emb.inv_freq = ours.pre_transformer.rotary_emb.inv_freq
    theirs.eval()
    frames, frame_samples = len(codes), int(theirs.total_upsample)

    def in_one_pass() -> Iterator[tuple[int, Tensor]]:
        yield 0, theirs(codes.T[None])[0, 0]

    def with_context(chunk: int, context: int) -> Iterator[tuple[int, Tensor]]:
        """Decode as transformers' `chunked_decode`, chunk by chunk."""
        for begin in range(0, frames, chunk):
            before = min(begin, context)
            audio = theirs(codes[begin - before : begin + chunk].T[None])[0, 0]
            yield begin * frame_samples, audio[before * frame_samples :]

    def stateful(chunks: Callable[[], Iterable[Tensor]]) -> Iterator[tuple[int, Tensor]]:
        decoder, begin = StreamingCode2Wav(ours), 0
        for chunk in chunks():
            audio = decoder.decode(chunk)
            yield begin, audio
            begin += len(audio)

    growing = f"1, 2, 4 … {CHUNK_FRAMES}"
    return [
        Decoding(("one pass", "all", ""), frames, in_one_pass),
        *(
            Decoding(("left context", str(chunk), str(context)), chunk, partial(with_context, chunk, context))
            for chunk, context in CONTEXTS
        ),
        *(
            Decoding(("stateful", str(chunk), ""), chunk, partial(stateful, partial(codes.split, chunk)))
            for chunk in CHUNKS
        ),
        Decoding(("stateful, as `speak`", growing, ""), 1, partial(stateful, partial(chunks_of, codes, CHUNK_FRAMES))),
    ]


def talker_times(kind: str, frames: int) -> list[float]:
    """Return the CPU seconds after which a talker with random weights has spoken 0, 1, 2 … frames."""
    talker, config = native_talker(kind, "cpu")
    scenario = Scenario(frames=frames)
    dtype = next(talker.parameters()).dtype

    def speak() -> Iterator[float]:
        start = process_time()
        thinker = scenario_inputs(scenario, config, "cpu", dtype)
        prompt = assemble_prompt(talker, config, thinker, config.speaker(scenario.speaker))
        yield 0.0
        for _ in stream(talker, prompt, frames, AS_TRANSFORMERS):
            yield process_time() - start

    list(speak())  # memory is found
    return list(speak())


def signal_to_noise(audio: Tensor, whole: Tensor) -> str:
    """Return the decibels of one pass over the difference from it, where there are samples."""
    there = ~audio.isnan()
    noise = (audio[there] - whole[there]).double().square().sum()
    if not noise:
        return "equal"
    return f"{10 * torch.log10(whole[there].double().square().sum() / noise):.0f} dB"


def row_of(way: Decoding, one_pass: Decoding, frames: int, talker: list[float]) -> str:
    cost, first = min(way.whole), min(way.first)
    lost = int(way.audio.isnan().sum()) / SAMPLE_RATE
    cells = [
        *way.cells,
        f"{talker[way.first_frames] + first:.2f} s" if way.first_frames < len(talker) else "after all frames",
        f"{first * 1e3:,.0f} ms",
        f"{cost / frames * 1e3:.0f} ms",
        f"{cost / min(one_pass.whole):.2f}",
        f"{len(one_pass.audio) / SAMPLE_RATE / cost:.2f}",
        signal_to_noise(way.audio, one_pass.audio) if way is not one_pass else "",
        f"{lost * 1e3:,.0f} ms" if lost else "0",
    ]
    return "| " + " | ".join(cells) + " |"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--talker", default="full:bfloat16", metavar="PRESET:DTYPE")
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/benchmarks/streaming-audio.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    talker = talker_times(options.talker, CHUNK_FRAMES)
    gc.collect()
    codes = torch.randint(2048, (options.frames, 16), generator=torch.Generator().manual_seed(0))
    ways = decodings_of(codes)
    samples = code2wav_config("full").samples_of(options.frames)
    order, shuffled = list(ways), random.Random(0)
    for _ in range(options.rounds):
        shuffled.shuffle(order)
        for way in order:
            way.time_once(samples)
    frame = statistics.median(later - before for before, later in pairwise(talker[1:]))
    heads = ["decoding", "chunk", "left context", "first audio", "its code2wav", "a frame", "of one pass"]
    heads += ["× real time", "signal to noise", "left out"]
    lines = [
        "# Streamed audio: latency, cost and fidelity",
        "",
        f"{date.today()}, torch {torch.__version__}, {processor()}, 1 thread, on a machine that others used too. "
        f"Code2wav as published with random weights in float32, {options.frames} frames of random codes; CPU time, "
        f"rounds: {options.rounds}, of which the least. Made by `python benchmarks/streaming_audio.py "
        f"--frames {options.frames} --rounds {options.rounds} --talker {options.talker}`.",
        "",
        "| " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * (len(heads) - 1),
        *(row_of(way, ways[0], options.frames, talker) for way in ways),
        "",
        f"First audio: CPU time of the talker (`{options.talker}`, random weights, eager; "
        f"{talker[1]:.2f} s to the first frame, then {frame:.2f} s a frame) for the frames of the first chunk, and of "
        "code2wav for that chunk. A frame, of one pass, × real time: code2wav alone, in the long run. Signal to noise: "
        "the samples of one pass of transformers' code2wav over their difference from those, where there "
        "are any. Left out: samples between chunks that need the next frame; `chunked_decode` of transformers goes on "
        "without them. Left context is decoded by transformers' code2wav, stateful chunks by the native one.",
    ]
    print("\n".join(lines))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
