"""What is done in a frame: a first code of the decoder, fifteen others of the code predictor, and their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from talkerviz.talker.generation.sampling import Sampling, penalise_repeats, sample_code
from talkerviz.talker.model.cache import KVCache, StaticCache
from talkerviz.talker.model.code_predictor import TalkerCodePredictorModelForConditionalGeneration
from talkerviz.talker.model.layers import argmax
from talkerviz.talker.model.talker import TalkerForConditionalGeneration


@dataclass(frozen=True)
class SamplingState:
    """How a run chooses its codes.

    sampling: how first codes are chosen.
    suppressed: the first codes never to be chosen, int64 [n].
    spoken: which first codes each row has spoken, bool [batch, vocab]; written with each, if repeats are penalised.
    generators: one of each row, and none where nothing is drawn.
    argmax: finds the index of the greatest of each row.
    """

    sampling: Sampling
    suppressed: Tensor
    spoken: Tensor
    generators: Sequence[torch.Generator]
    argmax: Callable[[Tensor], Tensor] = argmax


def decode_first_code(
    talker: TalkerForConditionalGeneration,
    embeds: Tensor,
    cache: KVCache | StaticCache,
    position_ids: Tensor | None,
    state: SamplingState,
) -> tuple[Tensor, Tensor]:
    """A frame's hidden state [batch, 1, hidden] and first code [batch, 1]."""
    # Root and models are called by keyword and return dataclasses, as in transformers: see recorder/.
    out = talker(inputs_embeds=embeds, cache=cache, position_ids=position_ids)
    logits = out.logits[:, -1]
    penalised = state.sampling.repetition_penalty != 1
    if penalised:
        logits = penalise_repeats(logits.float(), state.spoken, state.sampling.repetition_penalty)
    logits = logits.index_fill(1, state.suppressed, -torch.inf)
    first_code = sample_code(logits, state.sampling, state.generators, state.argmax)
    if penalised:
        state.spoken.scatter_(1, first_code, True)
    return out.last_hidden_state[:, -1:], first_code


def decode_residual_codes(
    talker: TalkerForConditionalGeneration, hidden: Tensor, first_code: Tensor, cache: KVCache, state: SamplingState
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The frame's codes [batch, 16], and the embeddings of the first, and of those after it but the last."""
    first_embed = talker.model.codec_embedding(first_code)
    start = torch.cat((hidden, first_embed), dim=1)
    codes, residual_embeds = predict_residual_codes(talker.code_predictor, start, cache, state)
    return torch.cat((first_code, codes), dim=1), (first_embed, residual_embeds)


def sum_code_embeddings(talker: TalkerForConditionalGeneration, codes: Tensor, most_embeds: Sequence[Tensor]) -> Tensor:
    """What the next frame is told of this one's codes [batch, 1, hidden]."""
    last_embed = talker.code_predictor.model.codec_embedding[-1](codes[:, -1:])
    return torch.cat((*most_embeds, last_embed), dim=1).sum(dim=1, keepdim=True)


def predict_residual_codes(
    predictor: TalkerCodePredictorModelForConditionalGeneration, start: Tensor, cache: KVCache, state: SamplingState
) -> tuple[Tensor, Tensor]:
    """A frame's codes 1 to 15 [batch, 15], and the embeddings of 1 to 14 [batch, 14, hidden].

    `start` [batch, 2, hidden] is the talker's last hidden state and the embedded first code.
    """
    # transformers fixes these for the predictor, whatever the talker samples with.
    sampling = replace(state.sampling, temperature=1.0, top_k=50, top_p=0.8)
    cache.length = 0
    out = predictor(inputs_embeds=start, cache=cache, group=1)
    codes = [sample_code(out.logits[:, -1], sampling, state.generators, state.argmax)]
    embeds = []
    for group in range(2, len(predictor.lm_head) + 1):
        out = predictor(code=codes[-1], cache=cache, group=group)
        embeds.append(out.inputs_embeds)
        codes.append(sample_code(out.logits[:, -1], sampling, state.generators, state.argmax))
    return torch.cat(codes, dim=1), torch.cat(embeds, dim=1)
