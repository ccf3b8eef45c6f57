"""Grouped-query attention with normalised queries and keys.

Shapes: B rows, S new tokens, P cached and new positions, N query heads, K key-value heads, D head_dim, H hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


_MASK_ALIGNMENT = 16
"""Multiple of a mask's row length: in each layer memory-efficient attention copies a mask whose rows are unaligned."""


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores, [B, 1, S, P]: 0 where `visible` is True, elsewhere -inf.

    Attention converts a boolean mask at each call, and all layers of a pass have the same.
    """
    positions = visible.shape[-1]
    rows = (*visible.shape[:-1], -(-positions // _MASK_ALIGNMENT) * _MASK_ALIGNMENT)
    mask = torch.full(rows, -torch.inf, dtype=dtype, device=visible.device)[..., :positions]
    return mask.masked_fill_(visible, 0)


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

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], cache: LayerCache, mask: Tensor | None
    ) -> Tensor:
        """Attend from hidden states [B, S, H] to themselves and all tokens in the cache: [B, S, H].

        `mask` [B, 1, S, P] is from `additive_mask`; None for no padding.
        """
        batch, tokens, _ = hidden_states.shape
        heads = (batch, tokens, -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)  # [B, N, S, D]
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)  # [B, K, S, D]
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)  # [B, K, S, D]
        key, value = cache.update(rotate(key, *position_embeddings), value)  # [B, K, P, D]
        query = rotate(query, *position_embeddings)
        if tokens == 1 and mask is not None:
            # The query heads of a group become its tokens, which have the same mask: no attention kernel of a GPU takes
            # both a mask and groups.
            query = query.reshape(batch, key.shape[1], -1, self.head_dim)  # [B, K, N / K, D]
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            # One new token attends to all positions; several are always a prompt, before which the cache is empty.
            is_causal=tokens > 1 and mask is None,
            attn_mask=mask,
            enable_gqa=query.shape[1] != key.shape[1],
        ).reshape(batch, -1, tokens, self.head_dim)  # [B, N, S, D]
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class ThinkerTextAttention(TalkerCodePredictorAttention):
    """Attention of the decoder, under the class name that transformers has for it."""

    norm = ThinkerTextRMSNorm
