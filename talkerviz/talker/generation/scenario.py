"""What one run is made of, and a stand-in for the thinker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from talkerviz.talker.generation.prompt import ThinkerOutputs
from talkerviz.talker.model.config import TalkerConfig


@dataclass(frozen=True)
class Scenario:
    """One run: lengths in tokens, a speaker of the talker's, frames of 80 ms, and a seed.

    `text_tokens` is the whole assistant part, its three role tokens included.

    Raises ValueError for anything that cannot be run.
    """

    prompt_tokens: int = 11
    text_tokens: int = 20
    speaker: str = "ethan"
    frames: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        # Three role tokens, the first to speak in the prompt, and one that trails it.
        least = {"prompt_tokens": 1, "text_tokens": 5, "frames": 1, "seed": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, not {getattr(self, name)}")


def scenario_inputs(
    scenario: Scenario, config: TalkerConfig, device: str | torch.device, dtype: torch.dtype
) -> ThinkerOutputs:
    """Random thinker outputs of the scenario's lengths, all text: the same for a seed on every device.

    Raises ValueError for a speaker that the talker does not have.
    """
    config.speaker(scenario.speaker)
    positions = scenario.prompt_tokens + scenario.text_tokens
    if positions > config.text.max_position_embeddings:
        # Before so many are drawn.
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
