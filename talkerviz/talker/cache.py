"""The keys and values of the tokens seen so far."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import StackConfig


class KVCache:
    """Keys and values of every layer, allocated once for a whole run.

    Two tensors [layers, batch, key-value heads, positions, head_dim]; `length` positions of them are in use. With
    `padding` [batch] the first so many positions of each row hold nothing that may be looked at.
    """

    def __init__(
        self,
        config: StackConfig,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
        batch: int = 1,
        padding: Tensor | None = None,
    ) -> None:
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, positions, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.padding = padding
        self.length = 0

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values [batch, heads, new, head_dim]; return all of them up to the new ones.

        `length` stays: the stack moves it on when its last layer is done.
        """
        start, end = self.length, self.length + keys.shape[2]
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def mask(self, new: int) -> Tensor | None:
        """What each of the next `new` tokens may look at [batch, 1, new, positions]; None if nothing is padded."""
        if self.padding is None:
            return None
        places = torch.arange(self.length + new, device=self.padding.device)
        own = places[self.length :, None]
        seen = (places <= own) & (places >= self.padding[:, None, None])
        # What pads a row looks at itself: with nothing at all to look at its values would not be numbers.
        return (seen | (places == own))[:, None]
