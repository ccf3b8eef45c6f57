"""Lengths, speaker and seed of a run, and random stand-ins for the thinker's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from talkerviz.talker.generation.prompt import ThinkerOutputs
from talkerviz.talker.model.config import TalkerConfig


@dataclass(frozen=True)
class Scenario:
    """One run of the talker.

    Attributes:
        prompt_tokens: tokens of the user.
        text_tokens: tokens of the assistant, the three of the role included.
        speaker: name of a voice.
        frames: frames of 80 ms to generate.
        seed: random seed, 0 or more.

    Raises:
        ValueError: a value is too small to run.
    """

    prompt_tokens: int = 11
    text_tokens: int = 20
    speaker: str = "ethan"
    frames: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        # The assistant has three role tokens, one that is spoken in the prompt, and one that trails it.
        minimums = {"prompt_tokens": 1, "text_tokens": 5, "frames": 1, "seed": 0}
        for name, minimum in minimums.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, not {getattr(self, name)}")


def scenario_inputs(
    scenario: Scenario, config: TalkerConfig, device: str | torch.device, dtype: torch.dtype
) -> ThinkerOutputs:
    """Draw thinker outputs of the scenario's lengths, all text; a seed gives the same ones on every device.

    Raises:
        ValueError: the talker does not have the speaker, or has too few positions.
    """
    config.speaker(scenario.speaker)
    positions = scenario.prompt_tokens + scenario.text_tokens
    if positions > config.text.max_position_embeddings:
        # Checked here so that no memory is spent on drawing them.
        raise ValueError(f"{positions} tokens: the talker has {config.text.max_position_embeddings} positions")
    generator = torch.Generator().manual_seed(scenario.seed)

    def draw(tokens: int) -> Tensor:
        embeddings = torch.randn(1, tokens, config.thinker_hidden_size, generator=generator)
        return embeddings.to(device=device, dtype=dtype)

    return ThinkerOutputs(
        special=draw(3),
        user=draw(scenario.prompt_tokens),
        user_hidden=draw(scenario.prompt_tokens),
        multimodal=torch.zeros(1, scenario.prompt_tokens, dtype=torch.bool),
        assistant=draw(scenario.text_tokens),
    )
