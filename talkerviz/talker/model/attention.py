"""Grouped-query attention with normalised queries and keys.

Shapes: B rows, S new tokens, P cached and new positions, N query heads, K key-value heads, D head_dim, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from talkerviz.talker.model.cache import LayerCache
from talkerviz.talker.model.config import StackConfig
from talkerviz.talker.model.layers import Linear, RMSNorm, ThinkerTextRMSNorm
from talkerviz.talker.model.rope import rotate


def disable_cudnn_attention() -> None:
    """Disable cuDNN attention in the whole process.

    It is torch's first choice on Hopper, but plans anew, for tens of milliseconds, for each number of keys, and a
    talker's cache grows by one each frame.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


class TalkerCodePredictorAttention(nn.Module):
    """Causal grouped-query self-attention (Ainslie et al. 2023, arXiv:2305.13245)."""

    norm: type[RMSNorm] = RMSNorm

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query_width = config.num_attention_heads * config.head_dim
        key_value_width = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_width, config.attention_bias)
        self.k_proj = Linear(config.hidden_size, key_value_width, config.attention_bias)
        self.v_proj = Linear(config.hidden_size, key_value_width, config.attention_bias)
        self.o_proj = Linear(query_width, config.hidden_size, config.attention_bias)
        self.q_norm = self.norm(config.head_dim, config.rms_norm_eps)
        self.k_norm = self.norm(config.head_dim, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], cache: LayerCache) -> Tensor:
        """Attend from hidden states [B, S, H] to themselves and all tokens in the cache: [B, S, H]."""
        batch, tokens, _ = hidden_states.shape
        heads = (batch, tokens, -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)  # [B, N, S, D]
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)  # [B, K, S, D]
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)  # [B, K, S, D]
        key, query = rotate(key, *position_embeddings), rotate(query, *position_embeddings)
        mixed = cache.attend(query, key, value)  # [B, N, S, D]
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class ThinkerTextAttention(TalkerCodePredictorAttention):
    """Attention of the decoder, under the class name that transformers has for it."""

    norm = ThinkerTextRMSNorm
