"""Audio from a talker and a code2wav at once, with the time that each takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor

from talkerviz.talker.generation.generate import stream
from talkerviz.talker.generation.prompt import ThinkerOutputs, assemble_prompt
from talkerviz.talker.generation.sampling import Sampling
from talkerviz.talker.model.code2wav import Code2Wav, StreamingCode2Wav
from talkerviz.talker.model.config import TalkerConfig

CHUNK_FRAMES = 25
"""Frames of the greatest chunk by default: 2 s of audio."""

# The talker's defaults in the `generate` of transformers' Qwen3OmniMoeForConditionalGeneration.
AS_TRANSFORMERS = Sampling(do_sample=True, temperature=0.9, top_k=50, repetition_penalty=1.05)


@dataclass
class SpeechProgress:
    """Progress of a speech.

    Attributes:
        frames: frames of 80 ms decoded to audio.
        chunks: passes of code2wav.
        samples: samples of 1/24,000 s.
        first_ns: time to the first samples, ns; None before them.
        talker_ns: time spent in the talker, ns.
        code2wav_ns: the rest of the time, ns.
    """

    frames: int = 0
    chunks: int = 0
    samples: int = 0
    first_ns: int | None = None
    talker_ns: int = 0
    code2wav_ns: int = 0

    @property
    def total_ns(self) -> int:
        """Time in all, ns."""
        return self.talker_ns + self.code2wav_ns


def stream_codes(
    talker: Any, config: TalkerConfig, thinker: ThinkerOutputs, speaker: str, frames: int, sampling: Sampling
) -> Iterator[Tensor]:
    """Yield the codes [code groups] of each frame once it is decoded, until the end of speech.

    Raises:
        ValueError: as `stream`, with the first frame.
    """
    prompt = assemble_prompt(talker, config, thinker, config.speaker(speaker))
    for frame in stream(talker, [prompt], frames, sampling):
        yield frame.codes[0]


def chunks_of(frames: Iterable[Tensor], chunk_frames: int) -> Iterator[Tensor]:
    """Group the codes [Q] of frames into chunks [F, Q] on the CPU, of 1 frame, then 2, 4 and so on to `chunk_frames`.

    A chunk of one frame is heard at once. Each next chunk is decoded while those before it are heard, which is in time
    for a talker and a code2wav of twice real time. The last chunk may be shorter.

    Raises:
        ValueError: with the first chunk, `chunk_frames` is below 1.
    """
    if chunk_frames < 1:
        raise ValueError(f"a chunk must have 1 frame or more, not {chunk_frames}")
    size = 1
    chunk: list[Tensor] = []
    for frame in frames:
        chunk.append(frame)
        if len(chunk) == size:
            yield torch.stack(chunk).cpu()
            chunk = []
            size = min(2 * size, chunk_frames)
    if chunk:
        yield torch.stack(chunk).cpu()


def stream_audio(code2wav: Code2Wav, frames: Iterable[Tensor], chunk_frames: int = CHUNK_FRAMES) -> Iterator[Tensor]:
    """Decode the codes [Q] of frames to audio while they come, in the chunks of `chunks_of`.

    Yields:
        Samples [n] of 1/24,000 s from -1 to 1, float32, on the device of code2wav.

    Raises:
        ValueError: as `chunks_of` and `StreamingCode2Wav.decode`.
    """
    decoder = StreamingCode2Wav(code2wav)
    for chunk in chunks_of(frames, chunk_frames):
        yield decoder.decode(chunk)


def stream_speech(
    code2wav: Code2Wav,
    frames: Iterable[Tensor],
    write: Callable[[Tensor], None],
    chunk_frames: int,
    *,
    progress: SpeechProgress,
) -> None:
    """Decode frames to audio chunk by chunk while they come, and write each chunk; see `stream_audio`.

    Args:
        code2wav: the decoder's weights.
        frames: codes [Q] of each frame.
        write: function called with the samples [n] of each chunk.
        chunk_frames: greatest number of frames of a chunk.
        progress: updated with each chunk, so that it is right however this ends.
    """
    start_ns = perf_counter_ns()
    decoder, chunks = StreamingCode2Wav(code2wav), chunks_of(frames, chunk_frames)
    try:
        while True:
            asked_ns = perf_counter_ns()
            try:
                # The chunk is on the CPU, so the talker's kernels for it have ended.
                chunk = next(chunks, None)
            finally:
                progress.talker_ns += perf_counter_ns() - asked_ns
            if chunk is None:
                return
            samples = decoder.decode(chunk)
            write(samples)
            progress.frames += len(chunk)
            progress.chunks += 1
            progress.samples += len(samples)
            progress.first_ns = progress.first_ns or perf_counter_ns() - start_ns
    finally:
        progress.code2wav_ns = perf_counter_ns() - start_ns - progress.talker_ns
