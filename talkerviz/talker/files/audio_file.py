"""Files and pipes of 16-bit audio that can be played while they are written."""

from __future__ import annotations

import os
import struct
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

import torch
from torch import Tensor

from talkerviz.atomic_file import AtomicFile, is_special, named_errors
from talkerviz.talker.model.code2wav_config import SAMPLE_RATE

AudioFormat = Literal["wav", "pcm"]
_SUFFIXES: dict[str, AudioFormat] = {".wav": "wav", ".wave": "wav", "": "wav", ".pcm": "pcm", ".raw": "pcm"}
_SAMPLE_BYTES = 2
_UNKNOWN_LENGTH = 0xFFFF_FFFF
"""Length of a WAV that goes on to the end of the pipe, as ffmpeg writes it; the greatest that the header can hold."""
_FORMAT_BYTES = 36  # of the header, between the length of the file and that of the samples


def audio_format_of(output: Path) -> AudioFormat:
    """Return the audio format of a file by its suffix; a pipe, a device and `-` are WAV.

    Raises:
        ValueError: another suffix.
    """
    if is_special(output):
        return "wav"
    if (audio_format := _SUFFIXES.get(output.suffix.lower())) is None:
        raise ValueError(
            f"{output}: {output.suffix} cannot be written: name a .wav, or a .pcm without header, "
            f"or convert: -o - | ffmpeg -i - {output.name}"
        )
    return audio_format


class AudioFile:
    """Context manager that writes samples of 16 bit, one channel, 24 kHz, little-endian.

    It is opened with the first samples, so that nothing is written or replaced before. A regular file can be played
    after each chunk, whatever stops the program: a WAV's length is kept up to date. The length in a pipe is unknown.

    Args:
        output: file to write; `-` for stdout.
        audio_format: `wav`, or `pcm` without a header.
    """

    def __init__(self, output: Path, audio_format: AudioFormat) -> None:
        self._output = output
        self._has_header = audio_format == "wav"
        self._atomic_file: AtomicFile | None = None
        self._is_stream = str(output) == "-" or is_special(output)
        self._is_open = False
        self._audio_bytes = 0

    def add(self, samples: Tensor) -> None:
        """Write samples [n] from -1 to 1, and flush them.

        Raises:
            OSError: the file cannot be written; it names the file, but not stdout.
        """
        steps = (samples.clamp(-1, 1) * 32767).round().to("cpu", torch.int16)
        self._write(steps.numpy().astype("<i2").tobytes())

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and not self._is_open:
            self._write(b"")  # a speech of no frames
        if self._atomic_file is None:
            return
        try:
            # The error that ended the block is the one to report.
            with suppress(OSError) if kind else nullcontext():
                if kind is None or self._audio_bytes:
                    self._atomic_file.finish()
        finally:
            self._atomic_file.discard()

    def _write(self, audio: bytes) -> None:
        if str(self._output) == "-":
            self._write_to(sys.stdout.buffer, audio)
            return
        with named_errors(self._output):
            self._atomic_file = self._atomic_file or AtomicFile(self._output)
            self._write_to(self._atomic_file.file, audio)
            self._atomic_file.show()

    def _write_to(self, file: BinaryIO, audio: bytes) -> None:
        if not self._is_open and self._has_header:
            file.write(_wav_header(_UNKNOWN_LENGTH if self._is_stream else 0))
        self._is_open = True
        file.write(audio)
        audio_bytes = self._audio_bytes + len(audio)
        if self._has_header and not self._is_stream:
            file.seek(0)
            file.write(_wav_header(audio_bytes))
            file.seek(0, os.SEEK_END)
        file.flush()
        self._audio_bytes = audio_bytes


def _wav_header(audio_bytes: int) -> bytes:
    """Return the 44 bytes before the samples of a WAV."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        min(audio_bytes + _FORMAT_BYTES, _UNKNOWN_LENGTH),
        b"WAVE",
        b"fmt ",
        16,  # bytes of the format
        1,  # integer samples
        1,  # channel
        SAMPLE_RATE,
        SAMPLE_RATE * _SAMPLE_BYTES,
        _SAMPLE_BYTES,
        8 * _SAMPLE_BYTES,
        b"data",
        min(audio_bytes, _UNKNOWN_LENGTH),
    )
