"""Description of a model for input generation: its config, the arguments of its `forward`, a random generator."""

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
class ModelSpec:
    """A model as the input factories see it.

    Attributes:
        model: the model.
        config: its config.
        names: names of the arguments of its `forward`.
        required: names of the arguments without a default.
        generator: random generator of the inputs.
        prompt_tokens: length of the text of the prompt.
    """

    model: nn.Module
    config: Any
    names: frozenset[str]
    required: frozenset[str]
    generator: torch.Generator
    prompt_tokens: int = PROMPT_TOKENS

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw integers from low to below high, int64."""
        _check_elements(shape)
        return torch.randint(low, max(high, low + 1), shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """Draw from a standard normal distribution, float32."""
        _check_elements(shape)
        return torch.randn(shape, generator=self.generator)

    def field(self, kinds: str, *names: str, default: Any = None) -> Any:
        """Return the first of these config fields that has a value, in the parts of these kinds, else in any part.

        Args:
            kinds: words in the names of the config's parts, such as `vision image`.
            names: names of fields, the likeliest first.
            default: value if there is none.
        """
        for part in parts_of(self.config, kinds):
            for name in names:
                if (value := getattr(part, name, None)) is not None:
                    return value
        return default

    def size(self, kinds: str, *names: str, default: int) -> int:
        """Return a field as one integer, the first of a list; see `field`."""
        value = self.field(kinds, *names, default=default)
        while isinstance(value, (list, tuple)):
            value = value[0]
        return int(value)


def _check_elements(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"its config asks for an input of {'x'.join(map(str, shape))}")


_MAX_ELEMENTS = 1 << 28  # 1 GiB of float32


def model_spec(model: nn.Module, seed: int, prompt_tokens: int = PROMPT_TOKENS) -> ModelSpec:
    """Describe a model; a seed gives the same inputs each time."""
    parameters = [
        parameter
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    return ModelSpec(
        model,
        model.config,
        frozenset(parameter.name for parameter in parameters),
        frozenset(parameter.name for parameter in parameters if parameter.default is parameter.empty),
        torch.Generator().manual_seed(seed),
        prompt_tokens,
    )


def parts_of(config: Any, kinds: str = "") -> list[Any]:
    """List the parts of a config: those with one of these words in their names, the config, all others; outer first."""
    from transformers import PreTrainedConfig

    named: list[Any] = []
    others: list[Any] = [config]
    level = [config]
    while level:
        below = [
            (name, part)
            for parent in level
            for name, part in vars(parent).items()
            if isinstance(part, PreTrainedConfig)
        ]
        for name, part in below:
            (named if any(word in name for word in kinds.split()) else others).append(part)
        level = [part for _, part in below]
    return [*named, *others]
