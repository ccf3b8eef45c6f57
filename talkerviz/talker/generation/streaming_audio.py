"""Speak while the sound is made, and see how long each takes."""

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

# How its `generate` has the talker draw codes.
AS_TRANSFORMERS = Sampling(do_sample=True, temperature=0.9, top_k=50, repetition_penalty=1.05)


@dataclass
class SpeechProgress:
    """How far a speech has come.

    Attributes:
        frames: of 80 ms, that are sound by now.
        chunks: how many passes of code2wav that took.
        samples: of 1/24,000 s.
        first_ns: until the first of them were there; None before that.
        talker_ns: inside of what gives the codes.
        code2wav_ns: the rest of the time.
    """

    frames: int = 0
    chunks: int = 0
    samples: int = 0
    first_ns: int | None = None
    talker_ns: int = 0
    code2wav_ns: int = 0

    @property
    def total_ns(self) -> int:
        """All of the time."""
        return self.talker_ns + self.code2wav_ns


def stream_codes(
    talker: Any, config: TalkerConfig, thinker: ThinkerOutputs, speaker: str, frames: int, sampling: Sampling
) -> Iterator[Tensor]:
    """Codes [16] of each frame as soon as it is spoken, from the prompt on, until the end of progress.

    Raises ValueError as `stream` does, with the first frame.
    """
    prompt = assemble_prompt(talker, config, thinker, config.speaker(speaker))
    for frame in stream(talker, prompt, frames, sampling):
        yield frame.codes[0]


def stream_speech(
    code2wav: Any,
    frames: Iterable[Tensor],
    add: Callable[[Tensor], None],
    chunk_frames: int,
    left_context: int,
    *,
    seamless: bool = False,
    progress: SpeechProgress,
) -> None:
    """Have `add` take the sound of frames, chunk by chunk while they come; see `stream_audio`.

    `progress` is kept up to date, so that it holds whatever stops this.
    """
    began = perf_counter_ns()
    read = 0

    def watched() -> Iterator[Tensor]:
        nonlocal read
        chunks = chunks_of(frames, chunk_frames)
        while True:
            asked = perf_counter_ns()
            try:
                # On the CPU, and so the talker is done with it.
                chunk = next(chunks, None)
            finally:
                progress.talker_ns += perf_counter_ns() - asked
            if chunk is None:
                return
            read += len(chunk)
            yield chunk

    try:
        for samples in decode_chunks(code2wav, watched(), left_context, seamless=seamless):
            add(samples)
            progress.frames = read
            progress.chunks += 1
            progress.samples += len(samples)
            progress.first_ns = progress.first_ns or perf_counter_ns() - began
    finally:
        progress.code2wav_ns = perf_counter_ns() - began - progress.talker_ns
