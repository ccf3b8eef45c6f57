"""A talker whose layers are few kernels each, for one stream on a GPU: frames near the time in which memory gives their
weights."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .attention import TalkerCodePredictorAttention
from .cache import LayerCache, StaticLayerCache
from .decoder import DecoderLayer, TalkerDecoderLayer
from .linear import Linear
from .moe import MLP, TalkerTextSparseMoeBlock
from .norm import RMSNorm
from .rope import RotaryEmbedding

if TYPE_CHECKING:
    from .talker import TalkerForConditionalGeneration

_TOKENS = 2
"""How many tokens a dense layer's kernels take at once: a frame's first pass of the code predictor has two."""

_BLOCK_BYTES = 32 << 10
"""Of weights that a program holds in its registers, while it waits for what they are to be multiplied with."""

_WARPS = 8
"""Of a program."""


def fuse_talker(talker: TalkerForConditionalGeneration) -> None:
    """Have layers, last norms and heads run as few Triton kernels, in place; all modules stay where they are.

    That is for a frame of one stream; prompts and batches run as before. In float32 codes stay what they are. In
    bfloat16 numbers are rounded where they were, and sums taken in another order.

    Raises ValueError for a talker that is not on a CUDA device, or where Triton is missing.
    """
    device = talker.codec_head.weight.device
    if device.type != "cuda":
        raise ValueError(f"fused kernels need a CUDA device, and the talker is on {device.type}: leave out --fused")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ValueError("fused kernels need Triton, which torch for CUDA brings: pip install triton") from error
    fuse_modules(talker)


def fuse_modules(talker: TalkerForConditionalGeneration) -> None:
    """What `fuse_talker` does, wherever the talker is: on a CPU for Triton's interpreter."""
    predictor = talker.code_predictor
    for layer in (*talker.model.layers, *predictor.model.layers):
        _replace(layer, _layer)
    for norm in (talker.model.norm, predictor.model.norm):
        _replace(norm, _norm)
    for head in (talker.codec_head, *predictor.lm_head):
        _replace(head, _head)
    _replace(predictor.model.rotary_emb, _all_angles(predictor.model.rotary_emb, talker.config.num_code_groups))


def _replace(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = MethodType(forward, module)


def _is_fused(x: Tensor) -> bool:
    """Whether x [batch, tokens, hidden] is what the kernels are for."""
    return x.shape[0] == 1 and x.shape[1] <= _TOKENS


def _layer(
    layer: DecoderLayer,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    cache: LayerCache,
    mask: Tensor | None,
) -> Tensor:
    """A layer's forward."""
    several = hidden_states.shape[1] > 1 and (mask is not None or isinstance(layer, TalkerDecoderLayer))
    if not _is_fused(hidden_states) or several:
        return type(layer).forward(layer, hidden_states, position_embeddings, cache, mask)
    x = hidden_states.contiguous()
    x = _attention(layer.self_attn, layer.input_layernorm, x, position_embeddings, cache, mask)
    feed_forward = _experts if isinstance(layer.mlp, TalkerTextSparseMoeBlock) else _mlp
    return feed_forward(layer.mlp, layer.post_attention_layernorm, x)


def _attention(
    attention: TalkerCodePredictorAttention,
    norm: RMSNorm,
    x: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    cache: LayerCache,
    mask: Tensor | None,
) -> Tensor:
    """x [1, tokens, hidden] and what attention adds to it."""
    from . import kernels

    _, key_heads, positions, head_dim = cache.keys.shape
    heads = attention.q_proj.out_features // head_dim
    tokens = x.shape[1]
    weights = [part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
    projected = _project(x, weights, norm)
    static = isinstance(cache, StaticLayerCache)
    # A program for each 64 positions that there may be, up to 16 of each head.
    splits = min(16, _power(-(-positions // 64))) if static else 1
    mixed = x.new_empty(splits, tokens, heads, head_dim, dtype=torch.float32)
    greatest, total = x.new_empty(2, splits, tokens, heads, dtype=torch.float32)
    cos, sin = position_embeddings
    kernels.attend[heads, tokens, splits](
        projected,
        attention.q_norm.weight,
        attention.k_norm.weight,
        attention.q_norm.eps,
        attention.k_norm.eps,
        cos,
        sin,
        cache.keys,
        cache.values,
        cache.place if isinstance(cache, StaticLayerCache) else positions - tokens,
        mask,
        mixed,
        greatest,
        total,
        head_dim**-0.5,
        cache.keys.stride(1),
        HEADS=heads,
        KEY_HEADS=key_heads,
        HALF=head_dim // 2,
        PLACE_IN_MEMORY=static,
        ANGLES_OF_ALL=cos.shape[1] > tokens,
        MASKED=mask is not None,
        TOKENS=tokens,
        SPLITS=splits,
        BLOCK_HALF=_power(head_dim // 2),
        BLOCK_POSITIONS=64 if static else 16,
        **_launch(x, warps=4 if static else 1),
    )
    matrix, out = attention.o_proj.weight, torch.empty_like(x)
    rows = _block_rows(matrix)
    kernels.project_mixed[(len(matrix) // rows,)](
        mixed,
        greatest,
        total,
        matrix,
        x,
        out,
        ROWS=len(matrix),
        HEADS=heads,
        HEAD=head_dim,
        TOKENS=tokens,
        SPLITS=splits,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=_power(heads * head_dim),
        **_launch(x),
    )
    return out


def _mlp(mlp: MLP, norm: RMSNorm, x: Tensor) -> Tensor:
    """x [1, tokens, hidden] and what the MLP adds to it."""
    from . import kernels

    gates, ups, downs = (part.weight for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    tokens, (width, hidden) = x.shape[1], gates.shape
    gated = x.new_empty(tokens, width)
    rows = _block_rows(gates, ups)
    kernels.gate[(width // rows,)](
        x,
        norm.weight,
        norm.eps,
        gates,
        ups,
        gated,
        ROWS=width,
        COLUMNS=hidden,
        TOKENS=tokens,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=_power(hidden),
        **_launch(x),
    )
    out = torch.empty_like(x)
    rows = _block_rows(downs)
    kernels.project_added[(hidden // rows,)](
        gated,
        downs,
        x,
        out,
        ROWS=hidden,
        COLUMNS=width,
        TOKENS=tokens,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=_power(width),
        **_launch(x),
    )
    return out


def _experts(mlp: TalkerTextSparseMoeBlock, norm: RMSNorm, x: Tensor) -> Tensor:
    """x [1, 1, hidden] and what the mixture of experts adds to it."""
    from . import kernels

    router, experts, shared = mlp.gate, mlp.experts, mlp.shared_expert
    count, hidden, width = experts.down_proj.shape
    gates, ups, shared_down = (part.weight for part in (shared.gate_proj, shared.up_proj, shared.down_proj))
    shared_width = len(gates)
    logits, gated_shared, opening = x.new_empty(count), x.new_empty(shared_width), x.new_empty(1)
    rows, of_router = _block_rows(gates, ups), _block_rows(router.weight)
    columns = _power(hidden)
    kernels.route[(shared_width // rows + count // of_router + 1,)](
        x,
        norm.weight,
        norm.eps,
        router.weight,
        gates,
        ups,
        mlp.shared_expert_gate.weight,
        logits,
        gated_shared,
        opening,
        EXPERTS=count,
        ROWS=shared_width,
        COLUMNS=hidden,
        BLOCK_ROWS=rows,
        BLOCK_EXPERTS=of_router,
        BLOCK_COLUMNS=columns,
        **_launch(x),
    )
    chosen, shares = x.new_empty(router.top_k, dtype=torch.int32), x.new_empty(router.top_k)
    kernels.choose_experts[(1,)](
        logits, chosen, shares, EXPERTS=count, CHOSEN=router.top_k, BLOCK_EXPERTS=_power(count), **_launch(x, warps=4)
    )
    gated = x.new_empty(router.top_k, width)
    rows = _block_rows(experts.gate_up_proj[0, :width], experts.gate_up_proj[0, width:])
    kernels.gate_experts[width // rows, router.top_k](
        x,
        norm.weight,
        norm.eps,
        chosen,
        experts.gate_up_proj,
        gated,
        ROWS=width,
        COLUMNS=hidden,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=columns,
        **_launch(x),
    )
    out = torch.empty_like(x)
    rows = _block_rows(shared_down, *[experts.down_proj[0]] * _power(router.top_k))
    kernels.project_experts[(hidden // rows,)](
        gated,
        chosen,
        shares,
        gated_shared,
        opening,
        experts.down_proj,
        shared_down,
        x,
        out,
        CHOSEN=router.top_k,
        ROWS=hidden,
        COLUMNS=width,
        SHARED_COLUMNS=shared_width,
        BLOCK_ROWS=rows,
        BLOCK_CHOSEN=_power(router.top_k),
        BLOCK_COLUMNS=_power(width),
        BLOCK_SHARED_COLUMNS=_power(shared_width),
        **_launch(x),
    )
    return out


def _norm(norm: RMSNorm, hidden_states: Tensor) -> Tensor:
    """A norm's forward."""
    from . import kernels

    if not _is_fused(hidden_states):
        return type(norm).forward(norm, hidden_states)
    x = hidden_states.contiguous()
    out = torch.empty_like(x)
    columns = x.shape[2]
    kernels.normalise[(x.shape[1],)](
        x, norm.weight, norm.eps, out, COLUMNS=columns, BLOCK_COLUMNS=_power(columns), **_launch(x)
    )
    return out


def _head(head: Linear, hidden_states: Tensor) -> Tensor:
    """A head's forward."""
    if not _is_fused(hidden_states):
        return type(head).forward(head, hidden_states)
    return _project(hidden_states.contiguous(), [head.weight])


def _project(x: Tensor, weights: list[Tensor], norm: RMSNorm | None = None) -> Tensor:
    """Up to three matrices [rows, hidden] times x [1, tokens, hidden], normalised: [1, tokens, all rows]."""
    from . import kernels

    sizes = [*map(len, weights), 0, 0][:3]
    out = x.new_empty(1, x.shape[1], sum(sizes))
    rows = _block_rows(*weights, at_once=1)
    kernels.project[(sum(sizes) // rows,)](
        x,
        weights[0] if norm is None else norm.weight,
        0.0 if norm is None else norm.eps,
        weights[0],
        weights[min(1, len(weights) - 1)],
        weights[-1],
        out,
        FIRST=sizes[0],
        SECOND=sizes[1],
        THIRD=sizes[2],
        COLUMNS=x.shape[2],
        NORMED=norm is not None,
        TOKENS=x.shape[1],
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=_power(x.shape[2]),
        **_launch(x),
    )
    return out


def _all_angles(rotary: RotaryEmbedding, positions: int) -> Callable[..., tuple[Tensor, Tensor]]:
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


def _power(size: int) -> int:
    """The least power of 2 that is not less."""
    return 1 << (size - 1).bit_length()


def _block_rows(*matrices: Tensor, at_once: int | None = None) -> int:
    """How many rows a program takes, a power of 2 that divides them all, of matrices all of which it reads."""
    shared = gcd(*(len(matrix) for matrix in matrices))
    columns = sum(_power(matrix.shape[1]) for matrix in matrices[:at_once])
    most = max(1, _BLOCK_BYTES // (columns * matrices[0].element_size()))
    return min(shared & -shared, 1 << (most.bit_length() - 1))


def _launch(x: Tensor, warps: int = _WARPS) -> dict[str, Any]:
    """How a kernel is launched: on Hopper and later it begins while the one before it runs."""
    early = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return {"PDL": early, "num_warps": warps, **({"launch_pdl": True} if early else {})}
