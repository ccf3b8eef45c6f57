"""Activations by the names that configs have: transformers' own, since a trace prints what they are called."""

from __future__ import annotations

from torch import nn


def activation(name: str) -> nn.Module:
    """A new one, such as `SiLUActivation` for silu. Raises KeyError for a name that there is not."""
    # Here, since it takes a second, and who traces a model of their own needs nothing of it.
    from transformers.activations import ACT2FN

    made: nn.Module = ACT2FN[name]
    return made


def is_activation(name: object) -> bool:
    """Whether there is one of this name."""
    from transformers.activations import ACT2FN

    return isinstance(name, str) and name in ACT2FN
