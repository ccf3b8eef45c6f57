"""Sound in a WAV file that is whole at any time."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .code2wav import SAMPLE_RATE


@contextmanager
def open_wav(path: Path) -> Iterator[Callable[[Tensor], None]]:
    """Begin a file of 16-bit samples, one channel, 24 kHz; gives the function that adds float samples [n] to it.

    Each time the header is brought up to date and all is handed to the system: whatever stops the program, what was
    added until then can be played.

    Raises ValueError for a pipe, where the header could not be.
    """
    with path.open("wb") as file:
        if not file.seekable():
            raise ValueError(f"{path}: is a pipe: a WAV begins with its length, which is known last")
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(SAMPLE_RATE)

            def add(samples: Tensor) -> None:
                steps = (samples.clamp(-1, 1) * 32767).round().to("cpu", torch.int16)
                sound.writeframes(steps.numpy().tobytes())
                file.flush()

            yield add
