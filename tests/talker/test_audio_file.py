"""Audio files: valid at any time, opened with the first samples, and streams of unknown length."""

from __future__ import annotations

import io
import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from talkerviz.talker.files.audio_file import AudioFile, audio_format_of


def samples_in(path: Path) -> list[int]:
    with wave.open(str(path)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 24000)
        samples: list[int] = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2").tolist()
        return samples


def test_a_wav_is_whole_after_each_chunk(tmp_path: Path) -> None:
    wav = tmp_path / "speech.wav"
    with AudioFile(wav, "wav") as audio:
        audio.add(torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0]))
        assert samples_in(wav) == [0, 32767, -32767, 16384, 32767]
        audio.add(torch.tensor([-0.25]))
        assert samples_in(wav)[5:] == [-8192]
    assert wav.stat().st_size == 44 + 12


def test_the_header_is_that_of_the_standard_library(tmp_path: Path) -> None:
    path, expected = tmp_path / "speech.wav", io.BytesIO()
    with AudioFile(path, "wav") as audio:
        audio.add(torch.linspace(-1, 1, 7))
    with wave.open(expected, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(24000)
        sound.writeframes(path.read_bytes()[44:])
    assert path.read_bytes() == expected.getvalue()


def test_pcm_has_no_header(tmp_path: Path) -> None:
    path = tmp_path / "speech.pcm"
    with AudioFile(path, "pcm") as audio:
        audio.add(torch.tensor([0.0, 1.0]))
        assert path.read_bytes() == b"\0\0\xff\x7f"
        audio.add(torch.tensor([-1.0]))
    assert path.read_bytes() == b"\0\0\xff\x7f\x01\x80"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("replaceable", [True, False])
def test_what_an_error_cuts_off_is_a_valid_wav(
    replaceable: bool, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(b"old")
    if not replaceable:

        def create_beside(target: Path, mode: int) -> tuple[int, Path]:
            raise PermissionError(13, "Permission denied", str(target))

        monkeypatch.setattr("talkerviz.atomic_file._create_beside", create_beside)

    def speak(*chunks: float) -> None:
        with AudioFile(path, "wav") as audio:
            for sample in chunks:
                audio.add(torch.tensor([sample]))
            raise error

    with pytest.raises(error):
        speak()
    assert path.read_bytes() == b"old"
    with pytest.raises(error):
        speak(0.5)
    assert samples_in(path) == [16384]
    assert [file.name for file in tmp_path.iterdir()] == ["speech.wav"]


def test_no_samples_are_an_empty_file(tmp_path: Path) -> None:
    for audio_format, size in (("wav", 44), ("pcm", 0)):
        path = tmp_path / f"speech.{audio_format}"
        with AudioFile(path, audio_format):  # type: ignore[arg-type]
            pass
        assert path.stat().st_size == size


def test_a_full_device_is_named() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    with pytest.raises(OSError, match="No space left") as raised, AudioFile(full, "wav") as audio:
        audio.add(torch.zeros(10))
    assert raised.value.filename == str(full)


def test_the_format_is_the_suffix_s(tmp_path: Path) -> None:
    names = {"a.wav": "wav", "a.WAV": "wav", "a": "wav", "-": "wav", "a.pcm": "pcm", "a.raw": "pcm", os.devnull: "wav"}
    for name, expected in names.items():
        assert audio_format_of(Path(name)) == expected
    for name in ("a.mp3", "a.flac", "a.wav.txt", "my.speech"):
        with pytest.raises(ValueError, match=rf"^{name}: \.\w+ cannot be written: name a \.wav, or a \.pcm"):
            audio_format_of(Path(name))


def test_stdout_is_flushed_with_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw)))  # type: ignore[arg-type, type-var]
    with AudioFile(Path("-"), "wav") as audio:
        assert raw.getvalue() == b""
        for n in (1, 2):
            audio.add(torch.zeros(5))
            assert len(raw.getvalue()) == 44 + n * 10
    assert not raw.closed
