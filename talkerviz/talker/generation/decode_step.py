"""One frame: the first code from the decoder, the residual codes from the code predictor, and their summed embedding.

Shapes: B rows, V codes of the decoder's vocabulary, G code groups, H hidden size.
"""

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
    """State of sampling in a run.

    Attributes:
        sampling: sampling of first codes.
        suppressed: first codes that are never generated, int64 [n].
        spoken: first codes that each row has generated, bool [B, V]; updated in place if repeats are penalised.
        generators: a generator for each row, empty for greedy decoding.
        argmax: function from [B, V] to the index of the greatest of each row [B, 1].
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
    """Run the decoder over the prompt or a frame [B, S, H]; return the last hidden state [B, 1, H] and code [B, 1]."""
    # Root and models are called by keyword and return dataclasses, as in transformers: see recorder/.
    out = talker(inputs_embeds=embeds, cache=cache, position_ids=position_ids)
    logits = out.logits[:, -1]  # [B, V]
    has_penalty = state.sampling.repetition_penalty != 1
    if has_penalty:
        logits = penalise_repeats(logits.float(), state.spoken, state.sampling.repetition_penalty)
    logits = logits.index_fill(1, state.suppressed, -torch.inf)
    first_code = sample_code(logits, state.sampling, state.generators, state.argmax)  # [B, 1]
    if has_penalty:
        state.spoken.scatter_(1, first_code, True)
    return out.last_hidden_state[:, -1:], first_code


def decode_residual_codes(
    talker: TalkerForConditionalGeneration, hidden: Tensor, first_code: Tensor, cache: KVCache, state: SamplingState
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run the code predictor on a frame's hidden state [B, 1, H] and first code [B, 1].

    Returns:
        All codes of the frame [B, G], and the embeddings of the first [B, 1, H] and of codes 1 to G - 2 [B, G - 2, H].
    """
    first_embed = talker.model.codec_embedding(first_code)  # [B, 1, H]
    start = torch.cat((hidden, first_embed), dim=1)  # [B, 2, H]
    codes, residual_embeds = predict_residual_codes(talker.code_predictor, start, cache, state)
    return torch.cat((first_code, codes), dim=1), (first_embed, residual_embeds)


def sum_code_embeddings(
    talker: TalkerForConditionalGeneration, codes: Tensor, known_embeds: Sequence[Tensor]
) -> Tensor:
    """Sum the embeddings of a frame's codes [B, G]: the next frame's input without its text, [B, 1, H].

    `known_embeds` are those that `decode_residual_codes` returned; the last code's is looked up here.
    """
    last_embed = talker.code_predictor.model.codec_embedding[-1](codes[:, -1:])  # [B, 1, H]
    return torch.cat((*known_embeds, last_embed), dim=1).sum(dim=1, keepdim=True)


def predict_residual_codes(
    predictor: TalkerCodePredictorModelForConditionalGeneration, start: Tensor, cache: KVCache, state: SamplingState
) -> tuple[Tensor, Tensor]:
    """Predict a frame's codes 1 to G - 1 [B, G - 1]; also return the embeddings of all but the last [B, G - 2, H].

    `start` [B, 2, H] is the talker's last hidden state and the embedded first code.
    """
    # transformers fixes these for the predictor, whatever the talker samples with.
    sampling = replace(state.sampling, temperature=1.0, top_k=50, top_p=0.8)
    cache.length = 0
    out = predictor(inputs_embeds=start, cache=cache, group=1)
    codes = [sample_code(out.logits[:, -1], sampling, state.generators, state.argmax)]
    embeds = [start[:, :0]]  # so that two code groups give an empty tensor
    for group in range(2, len(predictor.lm_head) + 1):
        out = predictor(code=codes[-1], cache=cache, group=group)
        embeds.append(out.inputs_embeds)
        codes.append(sample_code(out.logits[:, -1], sampling, state.generators, state.argmax))
    return torch.cat(codes, dim=1), torch.cat(embeds, dim=1)
