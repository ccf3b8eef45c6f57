"""Prompts for the tiny talker, and a talker that ends its speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from talker_parity import CONFIG, tiny_prompt
from torch import Tensor

from talkerviz.talker import Prompt, build_talker, generate


def a_prompt(model: Any, lengths: tuple[int, int] = (11, 20), seed: int = 0, positions: Tensor | None = None) -> Prompt:
    return tiny_prompt(model, positions, prompt_tokens=lengths[0], text_tokens=lengths[1], seed=seed)


def picture(before: int, height: int, width: int, after: int) -> Tensor:
    """Positions [3, 1, tokens] of text, a picture, and text."""
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    end = before + max(height, width)
    text = [torch.arange(before).expand(3, -1), (end + torch.arange(after)).expand(3, -1)]
    seen = before + torch.stack((torch.zeros_like(rows), rows, columns))
    return torch.cat((text[0], seen, text[1]), dim=1)[:, None]


def ending_talker(prompts: Sequence[Prompt]) -> Any:
    """Return a talker for which a code that the first prompt's third frame begins with is the end of speech."""
    model = build_talker(CONFIG)
    code = int(generate(model, prompts[0], 3, ignore_eos=True)[2, 0])
    model.config = replace(CONFIG, codec_eos_token_id=code)  # type: ignore[assignment]
    return model
