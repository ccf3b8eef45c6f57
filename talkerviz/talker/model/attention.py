"""Grouped-query attention with normalised queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkerviz.talker.model.cache import LayerCache
from talkerviz.talker.model.config import StackConfig
from talkerviz.talker.model.layers import Linear, RMSNorm, ThinkerTextRMSNorm
from talkerviz.talker.model.rope import rotate


def disable_cudnn_attention() -> None:
    """Have torch never choose cuDNN's attention, in the whole process.

    On Hopper it is torch's first choice, but it plans anew for each number of keys, and a talker's cache grows by one a
    frame: tens of milliseconds each.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


class TalkerCodePredictorAttention(nn.Module):
    """Causal self-attention: many query heads share few key-value heads (Ainslie et al. 2023, arXiv:2305.13245)."""

    norm: type[RMSNorm] = RMSNorm

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query_width = config.num_attention_heads * config.head_dim
        key_value_width = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_width)
        self.k_proj = Linear(config.hidden_size, key_value_width)
        self.v_proj = Linear(config.hidden_size, key_value_width)
        self.o_proj = Linear(query_width, config.hidden_size)
        self.q_norm = self.norm(config.head_dim, config.rms_norm_eps)
        self.k_norm = self.norm(config.head_dim, config.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], cache: LayerCache, mask: Tensor | None
    ) -> Tensor:
        """Mix hidden states [batch, tokens, hidden] with each other and with all tokens in the cache.

        Where rows are padded, `mask` [batch, 1, tokens, all tokens] says what may be looked at.
        """
        batch, tokens, _ = hidden_states.shape
        heads = (batch, tokens, -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        key, value = cache.update(rotate(key, *position_embeddings), value)
        query = rotate(query, *position_embeddings)
        if tokens == 1 and mask is not None:
            # Heads that share keys are as tokens that may look at the same: no single kernel of a GPU knows both a mask
            # and groups.
            query = query.reshape(batch, key.shape[1], -1, self.head_dim)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            # A single new token sees all there is; several can only be a prompt, met with an empty cache.
            is_causal=tokens > 1 and mask is None,
            attn_mask=mask,
            enable_gqa=query.shape[1] != key.shape[1],
        ).reshape(batch, -1, tokens, self.head_dim)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class ThinkerTextAttention(TalkerCodePredictorAttention):
    """The decoder's attention: the same, under the names transformers prints."""

    norm = ThinkerTextRMSNorm
