"""Codes files, as `talkerviz trace --codes` writes them: a JSON list of frames, each a list of its codes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from talkerviz.atomic_file import write_text
from talkerviz.talker.files.checkpoint import read_json
from talkerviz.talker.model.code2wav import check_codes
from talkerviz.talker.model.code2wav_config import Code2WavConfig


def write_codes(path: Path, codes: Tensor) -> None:
    """Write codes [frames, code groups]."""
    write_text(path, json.dumps(codes.tolist()) + "\n")


def read_codes(path: Path, config: Code2WavConfig) -> Tensor:
    """Read codes [frames, code groups], int64, for a code2wav.

    Args:
        path: the file.
        config: config of the code2wav.

    Raises:
        ValueError: it is not a codes file, has no frames, or codes that this code2wav does not have.
    """
    frames = read_json(path)
    if not isinstance(frames, list) or not frames:
        raise ValueError(f"{path}: is not a list of frames, as `talkerviz trace --codes` writes it")
    for number, frame in enumerate(frames):
        if not isinstance(frame, list) or not all(type(code) is int and abs(code) < 2**63 for code in frame):
            raise ValueError(f"{path}: frame {number} is not a list of codes")
        if len(frame) != config.num_quantizers:
            raise ValueError(f"{path}: frame {number} has {len(frame)} codes: {config.num_quantizers} are needed")
    codes = torch.tensor(frames)
    try:
        check_codes(codes, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return codes
