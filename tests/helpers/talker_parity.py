"""The talker and its recorded calls, for comparisons with transformers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from talkerviz.talker import (
    Prompt,
    Sampling,
    Scenario,
    assemble_prompt,
    build_talker,
    generate_scenario,
    preset,
    scenario_inputs,
)

CONFIG = preset("tiny")
SPEECH = Sampling(do_sample=True, temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.05, seed=3)


@cache
def talker(name: str, impl: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    return build_talker(preset(name), impl, dtype=dtype, seed=seed)


def first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    return value[0] if isinstance(value, tuple) and value and isinstance(value[0], Tensor) else None


class Calls:
    """Every call of a run in the order forward returns, and the tensors of the modules in `keep`."""

    def __init__(self, model: nn.Module, keep: tuple[str, ...] = ()) -> None:
        self.calls: list[tuple[str, str, list[int] | None, list[int] | None]] = []
        self.kept: dict[str, list[Tensor]] = {name: [] for name in keep}
        for name, module in model.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            ins, out = first_tensor(args), first_tensor(output)
            self.calls.append(
                (
                    name,
                    type(module).__name__.removeprefix("Qwen3OmniMoe"),
                    None if ins is None else list(ins.shape),
                    None if ins is None or out is None else list(out.shape),
                )
            )
            if name in self.kept and out is not None:
                self.kept[name].append(out.detach().clone())

        return hook


def recorded_run(name: str, impl: str, scenario: Scenario, keep: tuple[str, ...] = ()) -> tuple[Tensor, Calls]:
    config = preset(name)
    model = build_talker(config, impl, seed=scenario.seed)
    calls = Calls(model, keep)
    return generate_scenario(model, impl, scenario, config), calls


def tiny_prompt(model: Any, positions: Tensor | None = None, **scenario: Any) -> Prompt:
    """Return a prompt of the scenario's lengths for a tiny talker; `positions` [3, 1, tokens] are the user's."""
    thinker = scenario_inputs(Scenario(**scenario), CONFIG, "cpu", torch.float32)
    return assemble_prompt(model, CONFIG, replace(thinker, positions=positions), CONFIG.speaker("ethan"))
