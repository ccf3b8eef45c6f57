"""A model that asks for inputs: its config, the arguments of its `forward`, and where random numbers come from."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
PROMPT_TOKENS = 12


@dataclass(frozen=True)
class Ask:
    """What is known when an input is made.

    Attributes:
        model: who asks.
        config: its config.
        names: the arguments of its `forward`.
        required: those without a default.
        generator: where numbers are drawn from.
        prompt_tokens: length of the text of the prompt.
    """

    model: nn.Module
    config: Any
    names: frozenset[str]
    required: frozenset[str]
    generator: torch.Generator
    prompt_tokens: int = PROMPT_TOKENS

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Random whole numbers from low to below high, int64."""
        _check_elements(shape)
        return torch.randint(low, max(high, low + 1), shape, generator=self.generator)

    def real(self, *shape: int) -> Tensor:
        """Random numbers of a standard normal distribution, float32."""
        _check_elements(shape)
        return torch.randn(shape, generator=self.generator)

    def of(self, kinds: str, *names: str, default: Any = None) -> Any:
        """The first of these fields that has a value, in the parts of the config for these kinds, else anywhere in it.

        Args:
            kinds: words in the names of parts, such as `vision image`.
            names: fields, the likeliest first.
            default: if there is none.
        """
        for part in parts_of(self.config, kinds):
            for name in names:
                if (value := getattr(part, name, None)) is not None:
                    return value
        return default

    def size(self, kinds: str, *names: str, default: int) -> int:
        """A field as `of` finds it, as one number: of several the first."""
        value = self.of(kinds, *names, default=default)
        while isinstance(value, (list, tuple)):
            value = value[0]
        return int(value)


def _check_elements(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"its config asks for an input of {'x'.join(map(str, shape))}")


_MAX_ELEMENTS = 1 << 28  # 1 GiB of float32


def ask_of(model: nn.Module, seed: int, prompt_tokens: int = PROMPT_TOKENS) -> Ask:
    """What a model asks for; numbers are the same for a seed."""
    parameters = [
        one
        for one in inspect.signature(model.forward).parameters.values()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    return Ask(
        model,
        model.config,
        frozenset(one.name for one in parameters),
        frozenset(one.name for one in parameters if one.default is one.empty),
        torch.Generator().manual_seed(seed),
        prompt_tokens,
    )


def parts_of(config: Any, kinds: str = "") -> list[Any]:
    """The parts of a config whose names have one of these words, then itself, then all others; outer ones first."""
    from transformers import PreTrainedConfig

    named: list[Any] = []
    others: list[Any] = [config]
    level = [config]
    while level:
        below = [
            (name, part) for one in level for name, part in vars(one).items() if isinstance(part, PreTrainedConfig)
        ]
        for name, part in below:
            (named if any(word in name for word in kinds.split()) else others).append(part)
        level = [part for _, part in below]
    return [*named, *others]
