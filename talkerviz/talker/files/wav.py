"""WAV files that are valid at any time while they are written."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from talkerviz.atomic_file import AtomicFile, named_errors
from talkerviz.talker.model.code2wav_config import SAMPLE_RATE


@contextmanager
def open_wav(path: Path) -> Iterator[Callable[[Tensor], None]]:
    """Open a file of 16-bit samples, one channel, 24 kHz; the context is a function that appends float samples [n].

    Each call updates the header and flushes the file, so that it can be played up to there whatever stops the program.
    An existing file is replaced when the first samples are written.

    Raises:
        OSError: the file cannot be written.
        ValueError: it is a pipe, in which the header cannot be updated.
    """
    atomic_file = AtomicFile(path)
    file = atomic_file.file
    try:
        if not file.seekable():
            raise ValueError(f"{path}: is a pipe: a WAV begins with its length, which is known last")
        with named_errors(path), wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(SAMPLE_RATE)

            def add(samples: Tensor) -> None:
                steps = (samples.clamp(-1, 1) * 32767).round().to("cpu", torch.int16)
                sound.writeframes(steps.numpy().tobytes())
                file.flush()
                atomic_file.show()

            yield add
        atomic_file.finish()
    finally:
        atomic_file.discard()
