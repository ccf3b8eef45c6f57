"""Sound in a WAV file that is whole at any time."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from talkerviz.atomic_file import AtomicFile, named_errors
from talkerviz.talker.model.code2wav import SAMPLE_RATE


@contextmanager
def open_wav(path: Path) -> Iterator[Callable[[Tensor], None]]:
    """Begin a file of 16-bit samples, one channel, 24 kHz; gives the function that adds float samples [n] to it.

    Each time the header is brought up to date and all is handed to the system: whatever stops the program, what was
    added until then can be played. A file that was there before is replaced once the first samples are written.

    Raises:
        OSError: the file cannot be written.
        ValueError: it is a pipe, where the header could not be brought up to date.
    """
    written = AtomicFile(path)
    file = written.file
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
                written.show()

            yield add
        written.finish()
    finally:
        written.discard()
