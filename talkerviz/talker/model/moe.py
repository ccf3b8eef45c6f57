"""Feed-forward blocks: a gated MLP, and the decoder's mixture of experts.

Shapes: B rows, S tokens, T = B S, E experts, A experts chosen for a token, I expert width, H hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talkerviz.talker.model.config import TextConfig
from talkerviz.talker.model.layers import Linear, activation, compiles_one_row, int8_linear, linear, times_rows


class MLP(nn.Module):
    """Gated MLP of the code predictor (SwiGLU, Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)
        self.act_fn = activation(hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to [..., H]."""
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


class TalkerTextMLP(MLP):
    """The shared expert, under the class name that transformers has for it."""


class TalkerTextTopKRouter(nn.Module):
    """Router: scores all experts and chooses the likeliest for each token."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route hidden states [T, H].

        Returns:
            Logits [T, E], and the chosen experts' weights [T, A] and indices [T, A].
        """
        logits = linear(hidden_states, self.weight)  # [T, E]
        weights, experts = F.softmax(logits, dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return logits, weights.to(logits.dtype), experts


class TalkerTextExperts(nn.Module):
    """All experts of a layer, gated MLPs whose weights are stacked.

    `state_dict` has the published checkpoint's names, `7.gate_proj.weight` and so on, as views. Weights in int8 have
    scales, `7.gate_proj.weight_scale`; see `quantise_talker`.
    """

    gate_up_proj_scale: Tensor | None  # [E, 2 I]
    down_proj_scale: Tensor | None  # [E, H]

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))  # [E, 2 I, H]
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))  # [E, H, I]
        self.register_parameter("gate_up_proj_scale", None)
        self.register_parameter("down_proj_scale", None)
        self.act_fn = activation(config.hidden_act)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum the outputs of each token's experts by weight: [T, H] and twice [T, A] to [T, H]."""
        tokens, top_k = top_k_index.shape
        if compiles_one_row(hidden_states):
            return self._forward_compiled(hidden_states, top_k_index[0], top_k_weights[0])
        if tokens == 1 and _reads_routing(hidden_states.device):
            return self._forward_one_token(hidden_states, top_k_index[0].tolist(), top_k_weights[0])
        # One row per pair of a token and an expert, in the order of the experts.
        expert, pair = top_k_index.flatten().sort()  # [T A]
        x = hidden_states[pair // top_k]  # [T A, H]
        gate, up = _expert_linear(x, self.gate_up_proj, expert, self.gate_up_proj_scale).chunk(2, dim=-1)  # [T A, I]
        x = _expert_linear(self.act_fn(gate) * up, self.down_proj, expert, self.down_proj_scale)  # [T A, H]
        x = x * top_k_weights.flatten()[pair, None]
        by_token = torch.empty_like(x)
        by_token[pair] = x
        return by_token.view(tokens, top_k, -1).sum(dim=1)

    def _forward_one_token(self, x: Tensor, experts: list[int], weights: Tensor) -> Tensor:
        """Do what `forward` does for one token [1, H] and its experts' weights [A], without sorting pairs."""
        gate_up, gate_up_scale = self.gate_up_proj, self.gate_up_proj_scale
        down, down_scale = self.down_proj, self.down_proj_scale
        both = torch.cat([_one_linear(x, gate_up, expert, gate_up_scale) for expert in experts])  # [A, 2 I]
        gate, up = both.chunk(2, dim=-1)
        rows = (self.act_fn(gate) * up).split(1)
        out = torch.cat([_one_linear(x, down, expert, down_scale) for x, expert in zip(rows, experts, strict=True)])
        return (out * weights[:, None]).sum(dim=0, keepdim=True)

    def _forward_compiled(self, x: Tensor, expert: Tensor, weights: Tensor) -> Tensor:
        """Do what `_forward_one_token` does in compiled code, with experts [A] that the host does not read."""
        gate_up_scale, down_scale = (
            scale if scale is None else scale[expert] for scale in (self.gate_up_proj_scale, self.down_proj_scale)
        )
        gate, up = times_rows(x, self.gate_up_proj[expert], gate_up_scale).chunk(2, dim=-1)
        x = times_rows((self.act_fn(gate) * up)[:, None], self.down_proj[expert], down_scale)
        return (x * weights[:, None]).sum(dim=0, keepdim=True)

    def _checkpoint_views(self) -> Iterator[tuple[str, Tensor]]:
        stacks: dict[str, tuple[Tensor, Tensor]] = {"weight": (self.gate_up_proj, self.down_proj)}
        if self.gate_up_proj_scale is not None and self.down_proj_scale is not None:
            stacks["weight_scale"] = (self.gate_up_proj_scale, self.down_proj_scale)
        for kind, (gate_up, down) in stacks.items():
            gate, up = gate_up.chunk(2, dim=1)
            for name, weights in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
                for number, weight in enumerate(weights):
                    yield f"{number}.{name}.{kind}", weight

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, view in self._checkpoint_views():
            destination[prefix + name] = view if keep_vars else view.detach()

    @torch.no_grad()
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # By torch's contract problems go into the three lists, and load_state_dict raises them together.
        if self.gate_up_proj.is_meta:
            error_msgs.append(f"{prefix}gate_up_proj is on the meta device: call to_empty before load_state_dict")
        views = {prefix + name: view for name, view in self._checkpoint_views()}
        for key, view in views.items():
            if key not in state_dict:
                missing_keys.append(key)
            elif state_dict[key].shape != view.shape:
                error_msgs.append(
                    f"size mismatch for {key}: copying a param with shape {state_dict[key].shape} from checkpoint, "
                    f"the shape in current model is {view.shape}."
                )
            else:
                view.copy_(state_dict[key])
        unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in views]


def _reads_routing(device: torch.device) -> bool:
    """Return True if the host reads the routing, for which it would have to wait for any device but a CPU."""
    return device.type == "cpu"


def _one_linear(x: Tensor, weight: Tensor, expert: int, scale: Tensor | None) -> Tensor:
    """Multiply x [rows, in] by weight[expert] [out, in], which in int8 has scales [experts, out]: [rows, out]."""
    return F.linear(x, weight[expert]) if scale is None else int8_linear(x, weight[expert], scale[expert])


def _expert_linear(x: Tensor, weight: Tensor, expert: Tensor, scale: Tensor | None = None) -> Tensor:
    """Multiply row i of x [rows, in] by weight[expert[i]] [out, in], for rows sorted by expert: [rows, out].

    An int8 weight has scales [experts, out].
    """
    if _reads_routing(x.device):
        # One product per expert with rows: no weight is copied. transformers rounds so too with its default experts,
        # `grouped_mm`; its eager ones add to the sum expert by expert, and round in between.
        numbers, counts = torch.unique_consecutive(expert, return_counts=True)
        parts = torch.split(x, counts.tolist())
        pairs = zip(parts, numbers.tolist(), strict=True)
        return torch.cat([_one_linear(part, weight, number, scale) for part, number in pairs])
    # A grouped kernel reads the weights in place; without one they are gathered.
    if scale is None and _has_grouped_kernel(x.device, x.dtype):
        return _grouped_linear(x, weight, expert)
    return _gathered_linear(x, weight, expert, scale)


def _gathered_linear(x: Tensor, weight: Tensor, expert: Tensor, scale: Tensor | None = None) -> Tensor:
    """Do what `_expert_linear` does, with a copy of an expert's weight for each row."""
    # In chunks of 128 rows, since each row has a whole weight matrix.
    chunks = zip(torch.split(x, 128), torch.split(expert, 128), strict=True)
    out = torch.cat([torch.bmm(weight[e].to(x.dtype), rows.unsqueeze(-1)).squeeze(-1) for rows, e in chunks])
    return out if scale is None else out * scale[expert]


@functools.cache
def _has_grouped_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    # torch has F.grouped_mm from 2.10 on, with a kernel for Hopper and later.
    known = hasattr(F, "grouped_mm") and device.type == "cuda" and dtype == torch.bfloat16
    return known and torch.cuda.get_device_capability(device) >= (9, 0)


def _grouped_linear(x: Tensor, weight: Tensor, expert: Tensor) -> Tensor:
    """Do what `_expert_linear` does with a grouped product, a group for each expert."""
    ends = torch.searchsorted(expert, torch.arange(len(weight), device=x.device), right=True)
    return F.grouped_mm(x, weight.transpose(1, 2), offs=ends.to(torch.int32))


class TalkerTextSparseMoeBlock(nn.Module):
    """Routed experts and a gated shared expert (Qwen1.5-MoE, Qwen2-MoE)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate = TalkerTextTopKRouter(config)
        self.experts = TalkerTextExperts(config)
        self.shared_expert = TalkerTextMLP(
            config.hidden_size, config.shared_expert_intermediate_size, config.hidden_act
        )
        self.shared_expert_gate = Linear(config.hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Apply the block to [B, S, H]."""
        x = hidden_states.flatten(0, 1)  # [T, H]
        shared = self.shared_expert(x)
        _, weights, experts = self.gate(x)
        routed = self.experts(x, experts, weights)
        shared = torch.sigmoid(self.shared_expert_gate(x)) * shared
        out: Tensor = (routed + shared).view_as(hidden_states)
        return out
