"""From logits to a code: the processors of transformers' `generate`, in its order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.layers import argmax


@dataclass(frozen=True)
class Sampling:
    """How first codes are chosen. The default is greedy: `do_sample=False` uses the repetition penalty alone.

    Raises ValueError for a temperature or penalty that is not positive, a top_k below 1, a top_p outside (0, 1].
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be positive and finite, not {self.repetition_penalty}")


GREEDY = Sampling()


def suppressed_codes(config: TalkerConfig, ignore_eos: bool) -> list[int]:
    """The first codes never to be chosen: the last 1024 are not sound, and of them only end-of-speech may come."""
    size = config.text.vocab_size
    return [code for code in range(size - 1024, size) if ignore_eos or code != config.codec_eos_token_id]


def penalise_repeats(logits: Tensor, spoken: Tensor, penalty: float) -> Tensor:
    """Make codes less likely that were spoken, bool [batch, vocab] (Keskar et al. 2019, arXiv:1909.05858)."""
    return torch.where(spoken, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Leave the top_k largest logits [batch, vocab], and those that equal the last of them."""
    smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Leave the likeliest codes that together reach top_p (Holtzman et al. 2019, arXiv:1904.09751)."""
    ascending, order = logits.sort()
    unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    unlikely[:, -1] = False
    return logits.masked_fill(unlikely.scatter(1, order, unlikely), -torch.inf)


def sample_code(
    logits: Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    argmax: Callable[[Tensor], Tensor] = argmax,
) -> Tensor:
    """Choose a code [batch, 1] from logits [batch, vocab]; for sampling each row has a generator of its own.

    `argmax` finds the index of the greatest of each row.
    """
    if not sampling.do_sample:
        return argmax(logits)
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    rows = logits.softmax(-1)
    # As torch.multinomial draws one, without its look at the numbers on the host.
    drawn = [torch.empty_like(row).exponential_(generator=own) for row, own in zip(rows, generators, strict=True)]
    return argmax(rows / torch.stack(drawn))
