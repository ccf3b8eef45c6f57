"""A family of talkers: its configs, and how it speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Fields = Mapping[str, Any]
"""Fields of a config, as `config.json` has them; a part of the model has a mapping of its own."""


@dataclass(frozen=True)
class Speech:
    """Lengths of a prompt and of the speech after it.

    Attributes:
        text_tokens: tokens of the prompt, all text.
        frames: frames of the codec to generate.
        seed: random seed of the prompt, 0 or more.
    """

    text_tokens: int
    frames: int
    seed: int = 0

    def generator(self) -> torch.Generator:
        """Return a random generator on the CPU, so that every device gets the same prompt."""
        return torch.Generator().manual_seed(self.seed)

    def tokens(self, vocabulary: int, device: torch.device) -> Tensor:
        """Draw the prompt's tokens [1, text tokens]."""
        return torch.randint(vocabulary, (1, self.text_tokens), generator=self.generator()).to(device)


@dataclass(frozen=True)
class Family:
    """A family of talkers in transformers.

    Attributes:
        name: value of `--family`.
        checkpoint: published checkpoint that the preset `full` has the sizes of.
        codec: name of what turns codes into sound.
        frame_rate_hz: frames of codes in a second of speech.
        codes_a_frame: codes of a frame.
        presets: fields of the config by preset: `tiny`, `lite` and `full`.
        build: builds the model on the default device from a config's fields and a data type.
        speak: generates the frames of a `Speech` and decodes them; returns the sound, [..., samples].
        passes: calls a frame of the modules that make the passes, by path below the root; a path with one call a frame
            is that of the model whose passes are the frames.
        codec_path: path, below the root, of what turns codes into sound.
        model_type: `model_type` of a checkpoint's config that holds the whole model; None if the model is put
            together from several checkpoints, which `--checkpoint` does not load.
    """

    name: str
    checkpoint: str
    codec: str
    frame_rate_hz: float
    codes_a_frame: int
    presets: Mapping[str, Fields]
    build: Callable[[Fields, torch.dtype], nn.Module]
    speak: Callable[[Any, Speech], Tensor]
    passes: Mapping[str, float]
    codec_path: str
    model_type: str | None = None


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's weights."""
    return next(model.parameters()).device
