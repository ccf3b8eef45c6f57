"""Decoder layers, and the talker's decoder: the stack that makes one hidden state per frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from talkerviz.talker.model.attention import TalkerCodePredictorAttention, ThinkerTextAttention
from talkerviz.talker.model.cache import KVCache, LayerCache
from talkerviz.talker.model.config import CodePredictorConfig, StackConfig, TextConfig
from talkerviz.talker.model.layers import RMSNorm, TextRMSNorm, ThinkerTextRMSNorm
from talkerviz.talker.model.moe import MLP, TalkerTextSparseMoeBlock
from talkerviz.talker.model.rope import RotaryEmbedding, TalkerRotaryEmbedding


class DecoderLayer(nn.Module):
    """Attention, then feed-forward, each on normalised input and added back; subclasses name the parts."""

    def __init__(
        self,
        config: StackConfig,
        attention: TalkerCodePredictorAttention,
        mlp: MLP | TalkerTextSparseMoeBlock,
        norm: type[RMSNorm],
    ) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = norm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], cache: LayerCache, mask: Tensor | None
    ) -> Tensor:
        """[batch, tokens, hidden] to the same; the layer's keys and values go into the cache."""
        hidden_states = hidden_states + self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            cache=cache,
            mask=mask,
        )
        out: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return out


class TalkerDecoderLayer(DecoderLayer):
    """A layer of the talker's decoder: its feed-forward is a mixture of experts."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config, ThinkerTextAttention(config), TalkerTextSparseMoeBlock(config), ThinkerTextRMSNorm)


class TalkerCodePredictorDecoderLayer(DecoderLayer):
    """A layer of the code predictor: its feed-forward is dense."""

    def __init__(self, config: CodePredictorConfig) -> None:
        mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        super().__init__(config, TalkerCodePredictorAttention(config), mlp, RMSNorm)


@dataclass(frozen=True)
class ModelOutput:
    """What a stack returns: its normalised last hidden states [batch, tokens, hidden]."""

    last_hidden_state: Tensor


def run_layers(
    layers: nn.ModuleList,
    norm: RMSNorm,
    rotary_emb: RotaryEmbedding,
    inputs_embeds: Tensor,
    position_ids: Tensor,
    cache: KVCache,
) -> ModelOutput:
    """Send new tokens [batch, tokens, hidden] through a stack and move its cache on by as many."""
    position_embeddings = rotary_emb(inputs_embeds, position_ids)
    new = inputs_embeds.shape[1]
    mask = cache.mask(new)
    hidden_states = inputs_embeds
    for layer, kept in zip(layers, cache.layers(new), strict=True):
        hidden_states = layer(hidden_states, position_embeddings=position_embeddings, cache=kept, mask=mask)
    cache.length += new
    return ModelOutput(norm(hidden_states))


def next_positions(inputs_embeds: Tensor, cache: KVCache) -> Tensor:
    """Positions [1, tokens] of new tokens: they follow those in the cache."""
    end = cache.length + inputs_embeds.shape[1]
    return torch.arange(cache.length, end, device=inputs_embeds.device)[None]


class TalkerModel(nn.Module):
    """The talker's decoder and the embedding of its first code (`talker.model`)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TalkerDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = TextRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = TalkerRotaryEmbedding(config)
        self.codec_embedding = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, *, inputs_embeds: Tensor, cache: KVCache, position_ids: Tensor | None = None) -> ModelOutput:
        """Hidden states of new tokens [batch, tokens, hidden], which follow those in the cache.

        `position_ids` [3, batch, tokens] are their places in time, height and width; without them the tokens are
        speech and text, whose places follow those in the cache and are the same on the three axes.
        """
        if position_ids is None:
            position_ids = next_positions(inputs_embeds, cache).expand(3, 1, -1)
        return run_layers(self.layers, self.norm, self.rotary_emb, inputs_embeds, position_ids, cache)
