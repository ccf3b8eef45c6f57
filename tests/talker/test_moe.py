"""The mixture of experts: every way in which its products are taken gives the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from talkerviz.talker import build_talker, preset
from talkerviz.talker.model.moe import _expert_linear, _grouped_linear


def rows_of_experts(rows: int, experts: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(rows)
    weight = torch.randn(experts, 48, 64, generator=drawn)
    # Some experts have no row, not even the last.
    expert = (torch.randint(0, experts // 2, (rows,), generator=drawn) * 2).sort().values
    return torch.randn(rows, 64, generator=drawn).to(device, dtype), weight.to(device, dtype), expert.to(device)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="torch before 2.10 has no grouped_mm")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 9, 300])
def test_rows_in_groups_are_those_one_by_one(rows: int, dtype: torch.dtype) -> None:
    x, weight, expert = rows_of_experts(rows, 8, dtype)
    one_by_one = torch.stack([weight[e].float() @ row.float() for row, e in zip(x, expert, strict=True)])
    close = 1e-5 if dtype == torch.float32 else 1e-2
    for found in (_grouped_linear(x, weight, expert), _expert_linear(x, weight, expert)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), one_by_one, rtol=close, atol=close * 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rows", [4, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_as_on_a_cpu(rows: int, dtype: torch.dtype) -> None:
    x, weight, expert = rows_of_experts(rows, 8, dtype)
    found = _expert_linear(x.cuda(), weight.cuda(), expert.cuda()).cpu().float()
    torch.testing.assert_close(found, _expert_linear(x, weight, expert).float(), rtol=2e-2, atol=0.1)


def test_the_order_of_tokens_does_not_matter() -> None:
    experts = build_talker(preset("tiny")).model.layers[0].mlp.experts  # type: ignore[union-attr, index]
    text = preset("tiny").text
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(40, text.hidden_size, generator=drawn)
    index = torch.stack([torch.randperm(text.num_experts, generator=drawn)[: text.num_experts_per_tok] for _ in x])
    weights = torch.rand(index.shape, generator=drawn)
    order = torch.randperm(len(x), generator=drawn)
    shuffled = experts(x[order], index[order], weights[order])  # type: ignore[operator]
    torch.testing.assert_close(experts(x, index, weights)[order], shuffled)  # type: ignore[operator]
