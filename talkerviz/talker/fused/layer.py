"""What modules of a fused talker do when they are called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..cache import LayerCache
from ..decoder import DecoderLayer
from ..linear import Linear
from ..moe import TalkerTextSparseMoeBlock
from ..norm import RMSNorm
from ..rope import RotaryEmbedding
from .attention import add_attention
from .experts import add_experts
from .mlp import add_mlp
from .rows import normalise_rows, project_rows

_TOKENS = 2
"""How many tokens a dense layer's kernels take at once: a frame's first pass of the code predictor has two."""


def _is_fused(x: Tensor) -> bool:
    """Whether x [batch, tokens, hidden] is what the kernels are for.

    Where operations are counted or followed they run one by one: what a kernel does, nobody sees.
    """
    return x.shape[0] == 1 and x.shape[1] <= _TOKENS and not is_in_torch_dispatch_mode()


def layer_forward(
    layer: DecoderLayer,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    cache: LayerCache,
    mask: Tensor | None,
) -> Tensor:
    """A layer's."""
    mixture = isinstance(layer.mlp, TalkerTextSparseMoeBlock)
    several = hidden_states.shape[1] > 1 and (mixture or mask is not None)
    if several or not _is_fused(hidden_states):
        return type(layer).forward(layer, hidden_states, position_embeddings, cache, mask)
    x = hidden_states.contiguous()
    x = add_attention(x, layer.self_attn, layer.input_layernorm, position_embeddings, cache, mask)
    if isinstance(layer.mlp, TalkerTextSparseMoeBlock):
        return add_experts(x, layer.mlp, layer.post_attention_layernorm)
    return add_mlp(x, layer.mlp, layer.post_attention_layernorm)


def norm_forward(norm: RMSNorm, hidden_states: Tensor) -> Tensor:
    """A last norm's."""
    if not _is_fused(hidden_states):
        return type(norm).forward(norm, hidden_states)
    return normalise_rows(hidden_states.contiguous(), norm)


def head_forward(head: Linear, input: Tensor) -> Tensor:
    """A head's."""
    if not _is_fused(input):
        return type(head).forward(head, input)
    return project_rows(input.contiguous(), [head.weight])


def all_angles(positions: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """A forward that gives the angles of all positions, among which the kernels find those of theirs."""
    known: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def forward(self: RotaryEmbedding, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if not _is_fused(hidden_states):
            return type(self).forward(self, hidden_states, position_ids)
        if hidden_states.dtype not in known:
            places = torch.arange(positions + 1, device=hidden_states.device)[None]
            known[hidden_states.dtype] = type(self).forward(self, hidden_states, places)
        return known[hidden_states.dtype]

    return forward
