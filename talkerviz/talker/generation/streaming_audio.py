"""Audio from a talker and a code2wav at once, with the time that each takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from torch import Tensor

from talkerviz.talker.generation.generate import stream
from talkerviz.talker.generation.prompt import ThinkerOutputs, assemble_prompt
from talkerviz.talker.generation.sampling import Sampling
from talkerviz.talker.model.code2wav import chunks_of, decode_chunks
from talkerviz.talker.model.config import TalkerConfig

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


def stream_speech(
    code2wav: Any,
    frames: Iterable[Tensor],
    write: Callable[[Tensor], None],
    chunk_frames: int,
    left_context: int,
    *,
    seamless: bool = False,
    progress: SpeechProgress,
) -> None:
    """Decode frames to audio chunk by chunk while they come, and write each chunk; see `stream_audio`.

    Args:
        code2wav: a `Qwen3OmniMoeCode2Wav`.
        frames: codes [code groups] of each frame.
        write: function called with the samples [n] of each chunk.
        chunk_frames: frames of a chunk.
        left_context: frames before a chunk that are decoded with it.
        seamless: keep the samples that transformers loses between chunks.
        progress: updated with each chunk, so that it is right however this ends.
    """
    start_ns = perf_counter_ns()
    frames_read = 0

    def timed_chunks() -> Iterator[Tensor]:
        nonlocal frames_read
        chunks = chunks_of(frames, chunk_frames)
        while True:
            asked_ns = perf_counter_ns()
            try:
                # The chunk is on the CPU, so the talker's kernels for it have ended.
                chunk = next(chunks, None)
            finally:
                progress.talker_ns += perf_counter_ns() - asked_ns
            if chunk is None:
                return
            frames_read += len(chunk)
            yield chunk

    try:
        for samples in decode_chunks(code2wav, timed_chunks(), left_context, seamless=seamless):
            write(samples)
            progress.frames = frames_read
            progress.chunks += 1
            progress.samples += len(samples)
            progress.first_ns = progress.first_ns or perf_counter_ns() - start_ns
    finally:
        progress.code2wav_ns = perf_counter_ns() - start_ns - progress.talker_ns
