"""Sampling of codes from logits: the logits processors of transformers' `generate`, in the same order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from talkerviz.talker.model.config import TalkerConfig
from talkerviz.talker.model.layers import argmax

# The last codes of the decoder's vocabulary are control tokens, not sound; so transformers' `generate`.
_CONTROL_CODES = 1024


@dataclass(frozen=True)
class Sampling:
    """Sampling of first codes; greedy by default, with the repetition penalty alone.

    Attributes:
        do_sample: sample, rather than take the likeliest code.
        temperature: divisor of the logits.
        top_k: number of likeliest codes that are kept; None and 0 keep all.
        top_p: probability mass that is kept, in (0, 1].
        repetition_penalty: divisor of the positive logits of codes generated before.
        seed: random seed.

    Raises:
        ValueError: a temperature or penalty that is not positive, a top_k below 0, a top_p outside (0, 1].
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
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be positive and finite, not {self.repetition_penalty}")


GREEDY = Sampling()


def suppressed_codes(config: TalkerConfig, ignore_eos: bool) -> list[int]:
    """Return the first codes that are never generated: control codes, and with `ignore_eos` the end of speech."""
    size, eos = config.text.vocab_size, config.codec_eos_token_id
    codes = set(range(size - _CONTROL_CODES, size))
    return sorted(codes | {eos} if ignore_eos else codes - {eos})


def penalise_repeats(logits: Tensor, generated: Tensor, penalty: float) -> Tensor:
    """Lower the logits of codes generated before, bool [B, V] (Keskar et al. 2019, arXiv:1909.05858)."""
    return torch.where(generated, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Mask all but the top_k largest logits [B, V], and those equal to the last of them."""
    smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Mask all but the likeliest codes that together reach top_p (Holtzman et al. 2019, arXiv:1904.09751)."""
    ascending, order = logits.sort()
    unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    unlikely[:, -1] = False
    return logits.masked_fill(unlikely.scatter(1, order, unlikely), -torch.inf)


@dataclass(frozen=True)
class SamplingState:
    """State of the sampling of several rows.

    Attributes:
        sampling: sampling of first codes.
        suppressed: first codes that are never generated, int64 [n].
        spoken: first codes that each row has generated, bool [B, V]; updated in place if repeats are penalised.
        generators: a generator for each row, empty for greedy decoding.
        fused: find the likeliest code in one kernel.
    """

    sampling: Sampling
    suppressed: Tensor
    spoken: Tensor
    generators: Sequence[torch.Generator]
    fused: bool = False


def sample_first_code(logits: Tensor, state: SamplingState) -> Tensor:
    """Sample the decoder's code [B, 1] from logits [B, V], and note it as spoken."""
    has_penalty = state.sampling.repetition_penalty != 1
    if has_penalty:
        logits = penalise_repeats(logits.float(), state.spoken, state.sampling.repetition_penalty)
    logits = logits.index_fill(1, state.suppressed, -torch.inf)
    code = sample_code(logits, state.sampling, state.generators, fused=state.fused)
    if has_penalty:
        state.spoken.scatter_(1, code, True)
    return code


def sample_residual_code(logits: Tensor, state: SamplingState) -> Tensor:
    """Sample a code of the code predictor [B, 1] from logits [B, V]."""
    # transformers fixes these for the predictor, whatever the talker samples with.
    sampling = replace(state.sampling, temperature=1.0, top_k=50, top_p=0.8)
    return sample_code(logits, sampling, state.generators, fused=state.fused)


def sample_code(
    logits: Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    *,
    fused: bool = False,
) -> Tensor:
    """Sample a code [B, 1] from logits [B, V].

    Args:
        logits: of the next code.
        sampling: how to sample.
        generators: a generator for each row, if `sampling.do_sample`.
        fused: find the likeliest in one kernel.
    """
    argmax = _argmax(fused)
    if not sampling.do_sample:
        return argmax(logits)
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    probabilities = logits.softmax(-1)
    # torch.multinomial of one sample does the same, but also checks the probabilities on the host.
    noise = torch.empty_like(probabilities)
    for row, generator in zip(noise, generators, strict=True):
        row.exponential_(generator=generator)
    return argmax(probabilities / noise)


def _argmax(fused: bool) -> Callable[[Tensor], Tensor]:
    """Return the function from [B, V] to the index of the greatest of each row [B, 1]."""
    if fused:
        from talkerviz.talker.kernels.codes import fused_argmax  # imports Triton

        return fused_argmax
    return argmax
