"""Key-value caches: one that grows, and one at fixed addresses for CUDA graphs.

Shapes: L layers, B rows, K key-value heads, P positions, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from talkerviz.talker.model.config import StackConfig


class LayerCache:
    """Keys and values of a layer [B, K, P, D], whose last positions are reserved for the new tokens."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [B, K, new, D]; return those of all positions."""
        self.keys[:, :, -keys.shape[2] :] = keys
        self.values[:, :, -values.shape[2] :] = values
        return self.keys, self.values


class KVCache:
    """Keys and values of every layer, allocated once for a whole run.

    Attributes:
        keys: [L, B, K, P, D].
        values: the same shape.
        length: number of positions in use.
        padding: number of padded positions at the start of each row [B]; None for no padding.
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
        # One position more than is ever used: every slice is then non-contiguous, and compiled code fits all of them.
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, positions + 1, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.padding = padding
        self.length = 0

    def layers(self, new: int) -> Iterator[LayerCache]:
        """Yield each layer's cache, with room for `new` tokens.

        `length` does not change: the stack advances it after its last layer.
        """
        end = self.length + new
        for keys, values in zip(self.keys, self.values, strict=True):
            yield LayerCache(keys[:, :, :end], values[:, :, :end])

    def mask(self, new: int) -> Tensor | None:
        """Return the attention mask of the next `new` tokens, bool [B, 1, new, P]; None without padding."""
        if self.padding is None:
            return None
        key_positions = torch.arange(self.length + new, device=self.padding.device)  # [P]
        query_positions = key_positions[self.length :, None]  # [new, 1]
        visible = (key_positions <= query_positions) & (key_positions >= self.padding[:, None, None])
        # Padding attends to itself: a softmax over nothing would be NaN.
        return (visible | (key_positions == query_positions))[:, None]


class StaticCache:
    """A KVCache whose next position is a tensor, so that each pass does the same to the same memory.

    A pass has one new token. Attention covers all positions; unused ones are masked.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.length = cache.length
        self.position = torch.tensor([cache.length], device=cache.keys.device)  # [1]
        # Masked values are still multiplied, by zero, and NaN times zero is NaN.
        cache.keys[:, :, :, cache.length :] = 0
        cache.values[:, :, :, cache.length :] = 0

    def layers(self, new: int) -> Iterator[StaticLayerCache]:
        """Yield each layer's cache of all positions."""
        for keys, values in zip(self.cache.keys, self.cache.values, strict=True):
            yield StaticLayerCache(keys, values, self.position)

    def mask(self, new: int) -> Tensor:
        """Return the new token's attention mask, bool [B or 1, 1, 1, P]."""
        key_positions = torch.arange(self.cache.keys.shape[3], device=self.position.device)  # [P]
        visible = (key_positions <= self.position)[None]  # [1, P]
        if self.cache.padding is not None:
            visible = visible & (key_positions >= self.cache.padding[:, None])  # [B, P]
        return visible[:, None, None]


class StaticLayerCache(LayerCache):
    """A layer's cache that is written at `position` [1]."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        super().__init__(keys, values)
        self.position = position

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new key and value [B, K, 1, D]; return those of all positions."""
        self.keys.index_copy_(2, self.position, keys)
        self.values.index_copy_(2, self.position, values)
        return self.keys, self.values
