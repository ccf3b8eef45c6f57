"""The code2wav of a preset or a checkpoint as a target."""

from __future__ import annotations

from pathlib import Path

import torch

from talkerviz.recorder.phases.generic import PassPhases
from talkerviz.talker.files.build import build_code2wav, load_code2wav
from talkerviz.talker.files.checkpoint import find_module, read_code2wav_config
from talkerviz.talker.files.codes_file import read_codes
from talkerviz.talker.files.weight_loader import OnBytes
from talkerviz.talker.generation.streaming_audio import CHUNK_FRAMES, chunks_of
from talkerviz.talker.model.code2wav import Code2Wav, StreamingCode2Wav
from talkerviz.talker.model.code2wav_config import Code2WavConfig, code2wav_config
from talkerviz.talker.model.config import default_dtype
from talkerviz.targets.target import OnFrame, Target, facts_of


def code2wav_config_of(source: str | Path) -> Code2WavConfig:
    """Return the config of the code2wav of a preset (`str`) or of a checkpoint's folder (`Path`).

    Raises:
        ValueError: an unknown preset, or a config.json that cannot be used.
    """
    return read_code2wav_config(source) if isinstance(source, Path) else code2wav_config(source)


def code2wav_of(
    source: str | Path,
    device: str,
    dtype: torch.dtype | None,
    seed: int = 0,
    on_bytes: OnBytes | None = None,
) -> Code2Wav:
    """Build the code2wav of a preset with random weights, or load that of a checkpoint.

    Without a `dtype` it is float32 on a CPU, and elsewhere the preset's or the checkpoint's.

    Raises:
        ValueError: an unknown preset, or a checkpoint that cannot be loaded.
    """
    config = code2wav_config_of(source)
    if dtype is None and torch.device(device).type == "cpu":
        # Without instructions of their own, processors take 40 times as long for convolutions in bfloat16.
        dtype = torch.float32
    if isinstance(source, Path):
        return load_code2wav(config, find_module(source, "code2wav."), device, dtype, on_bytes)
    return build_code2wav(config, device, dtype or default_dtype(source), seed)


def code2wav_target(
    source: str | Path,
    device: str,
    dtype: torch.dtype | None,
    codes: Path | None,
    frames: int,
    seed: int = 0,
    on_bytes: OnBytes | None = None,
) -> Target:
    """Make a target that decodes codes to audio, one pass for each of the chunks that `speak` makes.

    Args:
        source: name of a preset, or path of a checkpoint's folder.
        device: device of the weights.
        dtype: dtype of the weights; see `code2wav_of`.
        codes: file written by `--codes`; by default the codes are random.
        frames: number of random frames.
        seed: random seed for a preset's weights, and for codes.
        on_bytes: progress callback of a checkpoint's loading, see `read_into`.

    Raises:
        ValueError: as `code2wav_of`, no frames, or codes that do not fit.
    """
    config = code2wav_config_of(source)
    if codes:
        rows = read_codes(codes, config)
    else:
        if frames < 1:
            raise ValueError(f"frames must be at least 1, not {frames}")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(config.codebook_size, (frames, config.num_quantizers), generator=generator)
    code2wav = code2wav_of(source, device, dtype, seed, on_bytes)

    def run(on_frame: OnFrame) -> None:
        decoder, decoded = StreamingCode2Wav(code2wav), 0
        for chunk in chunks_of(rows, CHUNK_FRAMES):
            decoder.decode(chunk)
            decoded += len(chunk)
            on_frame(decoded)

    return Target(
        name="code2wav",
        model=code2wav,
        run=run,
        phases=PassPhases,
        facts={
            **facts_of(source),
            **({"codes": str(codes)} if codes else {"seed": seed}),
            "code_frames": len(rows),
            "chunk_frames": CHUNK_FRAMES,
        },
        frames=len(rows),
    )
