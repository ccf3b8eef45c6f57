"""Decoder layers, and the talker's decoder, which computes one hidden state per frame.

Shapes: B rows, S new tokens, P cached and new positions, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from talkerviz.talker.model.attention import TalkerCodePredictorAttention, ThinkerTextAttention, additive_mask
from talkerviz.talker.model.cache import KVCache, LayerCache
from talkerviz.talker.model.config import CodePredictorConfig, StackConfig, TextConfig
from talkerviz.talker.model.layers import RMSNorm, TextRMSNorm, ThinkerTextRMSNorm
from talkerviz.talker.model.moe import MLP, TalkerTextSparseMoeBlock
from talkerviz.talker.model.rope import RotaryEmbedding, TalkerRotaryEmbedding


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer; subclasses choose the attention, feed-forward and norm classes."""

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
        """Apply the layer to [B, S, H]; write its keys and values to the cache."""
        hidden_states = hidden_states + self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            cache=cache,
            mask=mask,
        )
        out: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return out


class TalkerDecoderLayer(DecoderLayer):
    """Layer of the talker's decoder, with a mixture of experts."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config, ThinkerTextAttention(config), TalkerTextSparseMoeBlock(config), ThinkerTextRMSNorm)


class TalkerCodePredictorDecoderLayer(DecoderLayer):
    """Layer of the code predictor, with a dense MLP."""

    def __init__(self, config: CodePredictorConfig) -> None:
        mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        super().__init__(config, TalkerCodePredictorAttention(config), mlp, RMSNorm)


@dataclass(frozen=True)
class ModelOutput:
    """Output of a stack: its normalised last hidden states [B, S, H]."""

    last_hidden_state: Tensor


def run_layers(
    layers: nn.ModuleList,
    norm: RMSNorm,
    rotary_emb: RotaryEmbedding,
    inputs_embeds: Tensor,
    position_ids: Tensor,
    cache: KVCache,
) -> ModelOutput:
    """Run a stack on new tokens [B, S, H] and advance its cache by S."""
    position_embeddings = rotary_emb(inputs_embeds, position_ids)  # cos and sin, [B or 1, S, head_dim]
    new = inputs_embeds.shape[1]
    visible = cache.mask(new)
    mask = None if visible is None else additive_mask(visible, inputs_embeds.dtype)  # [B, 1, S, P]
    hidden_states = inputs_embeds
    for layer, layer_cache in zip(layers, cache.layers(new), strict=True):
        hidden_states = layer(hidden_states, position_embeddings=position_embeddings, cache=layer_cache, mask=mask)
    cache.length += new
    return ModelOutput(norm(hidden_states))


def next_positions(inputs_embeds: Tensor, cache: KVCache) -> Tensor:
    """Return the positions [1, S] of new tokens [B, S, H], which follow those in the cache."""
    end = cache.length + inputs_embeds.shape[1]
    return torch.arange(cache.length, end, device=inputs_embeds.device)[None]


class TalkerModel(nn.Module):
    """The talker's decoder and its embedding of first codes (`talker.model`)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TalkerDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = TextRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = TalkerRotaryEmbedding(config)
        self.codec_embedding = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, *, inputs_embeds: Tensor, cache: KVCache, position_ids: Tensor | None = None) -> ModelOutput:
        """Compute the hidden states of new tokens [B, S, H], which follow those in the cache.

        `position_ids` [3, B, S] are their positions in time, height and width; by default they follow the cache's and
        are the same on the three axes, as of speech and text.
        """
        if position_ids is None:
            position_ids = next_positions(inputs_embeds, cache).expand(3, 1, -1)
        return run_layers(self.layers, self.norm, self.rotary_emb, inputs_embeds, position_ids, cache)
