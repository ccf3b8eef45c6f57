"""Key-value caches: one that grows with its row, several rows' together, and one at fixed addresses for CUDA graphs.

Shapes: L layers, B rows, N query heads, K key-value heads, S new tokens, P cached and new positions, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from talkerviz.talker.model.config import StackConfig

FIRST_POSITIONS = 64
"""Positions of a new cache, 5 s of speech; a full cache doubles, so each position is copied about once."""


class LayerCache:
    """Keys and values of a layer [B, K, P, D], whose last positions are reserved for the new tokens."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values [B, K, S, D]; return those of all positions."""
        self.keys[:, :, -keys.shape[2] :] = keys
        self.values[:, :, -values.shape[2] :] = values
        return self.keys, self.values

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write the new keys and values [B, K, S, D] and attend to all from queries [B, N, S, D]: [B, N, S, D]."""
        new = query.shape[2]
        keys, values = self.update(keys, values)
        return F.scaled_dot_product_attention(
            query,
            keys,
            values,
            # One new token attends to all positions; several are always a prompt, before which the cache is empty.
            is_causal=new > 1,
            enable_gqa=query.shape[1] != keys.shape[1],
        )


class KVCache:
    """Keys and values of every layer, of rows of the same length; grows when it is full.

    Attributes:
        keys: [L, B, K, positions, D].
        values: the same shape.
        length: number of positions in use.
        offset: rotary position of a new token less `length`: pictures take fewer positions than tokens.
    """

    def __init__(
        self,
        config: StackConfig,
        device: torch.device,
        dtype: torch.dtype,
        rows: int = 1,
        positions: int = FIRST_POSITIONS,
    ) -> None:
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, positions, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0
        self.offset = 0

    def positions(self, new: int) -> Tensor:
        """Return the rotary positions of the next `new` tokens [1, S]."""
        start = self.length + self.offset
        return torch.arange(start, start + new, device=self.keys.device)[None]

    def layers(self, new: int) -> Iterator[LayerCache]:
        """Yield each layer's cache, with room for `new` tokens; `advance` counts them after the last layer."""
        end = self.length + new
        # One position more than is used: every slice is then non-contiguous, and compiled code fits all of them.
        if end + 1 > self.keys.shape[3]:
            self.grow(max(end + 1, 2 * self.keys.shape[3]))
        for keys, values in zip(self.keys, self.values, strict=True):
            yield LayerCache(keys[:, :, :end], values[:, :, :end])

    def grow(self, positions: int) -> None:
        """Move keys and values to memory of so many positions."""
        self.keys, self.values = (_copied(part, self.length, positions) for part in (self.keys, self.values))

    def advance(self, new: int) -> None:
        """Count `new` tokens, which every layer has written."""
        self.length += new


def _copied(part: Tensor, length: int, positions: int) -> Tensor:
    """Copy the first `length` positions of [L, B, K, P, D] to new memory of so many positions."""
    grown = part.new_empty(*part.shape[:3], positions, part.shape[4])
    grown[:, :, :, :length] = part[:, :, :, :length]
    return grown


class RowCaches:
    """Caches of several rows, each of its own length, for one new token of each.

    Each row attends by itself to its own positions, and so rounds as it does alone; a mask over padded rows does not.
    """

    def __init__(self, rows: Sequence[KVCache]) -> None:
        self.rows = rows

    def positions(self, new: int) -> Tensor:
        """Return the rotary position of each row's next token [B, 1]."""
        return torch.cat([row.positions(new) for row in self.rows])

    def layers(self, new: int) -> Iterator[RowLayerCaches]:
        """Yield each layer's caches."""
        for layer in zip(*(row.layers(new) for row in self.rows), strict=True):
            yield RowLayerCaches(layer)

    def advance(self, new: int) -> None:
        """Count `new` tokens in each row."""
        for row in self.rows:
            row.advance(new)


class RowLayerCaches:
    """A layer's caches of several rows."""

    def __init__(self, rows: Sequence[LayerCache]) -> None:
        self.rows = rows

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend as `LayerCache.attend`, row by row: [B, N, 1, D]."""
        new = zip(self.rows, *(torch.split(part, 1) for part in (query, keys, values)), strict=True)
        return torch.cat([cache.attend(*row) for cache, *row in new])


_MASK_ALIGNMENT = 16
"""Multiple of a mask's row length: in each layer memory-efficient attention copies a mask whose rows are unaligned."""


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores, [B, 1, S, P]: 0 where `visible` is True, elsewhere -inf.

    Attention converts a boolean mask at each call, and all layers of a pass have the same.
    """
    positions = visible.shape[-1]
    rows = (*visible.shape[:-1], -(-positions // _MASK_ALIGNMENT) * _MASK_ALIGNMENT)
    mask = torch.full(rows, -torch.inf, dtype=dtype, device=visible.device)[..., :positions]
    return mask.masked_fill_(visible, 0)


class StaticCache:
    """Caches of several rows at fixed addresses, whose next positions are a tensor: each pass does the same.

    A pass has one new token of each row. Attention covers all positions; unused ones are masked.

    Attributes:
        keys: [L, B, K, P, D].
        values: the same shape.
        position: index of each row's next token [B].
        offset: its rotary position less its index [B].
    """

    def __init__(self, rows: Sequence[KVCache], new: int) -> None:
        """Copy the rows' caches, with room for `new` tokens of each."""
        lengths = [row.length for row in rows]
        like = rows[0].keys
        shape = (like.shape[0], len(rows), like.shape[2], max(lengths) + new, like.shape[4])
        # Masked values are still multiplied, by zero, and NaN times zero is NaN.
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            self.keys[:, number, :, :length] = row.keys[:, 0, :, :length]
            self.values[:, number, :, :length] = row.values[:, 0, :, :length]
        self.position = torch.tensor(lengths, device=like.device)
        self.offset = torch.tensor([row.offset for row in rows], device=like.device)

    def positions(self, new: int) -> Tensor:
        """Return the rotary position of each row's next token [B, 1]."""
        return (self.position + self.offset)[:, None]

    def layers(self, new: int) -> Iterator[StaticLayerCache]:
        """Yield each layer's cache of all positions."""
        key_positions = torch.arange(self.keys.shape[3], device=self.position.device)  # [P]
        visible = (key_positions <= self.position[:, None])[:, None, None]  # [B, 1, 1, P]
        mask = additive_mask(visible, self.keys.dtype)
        for keys, values in zip(self.keys, self.values, strict=True):
            yield StaticLayerCache(keys, values, self.position, mask)

    def advance(self, new: int) -> None:
        """Count `new` tokens in each row."""
        self.position.add_(new)


class StaticLayerCache(LayerCache):
    """A layer's cache that is written at `position` [B] and read behind `mask` [B, 1, 1, P], of `additive_mask`."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor, mask: Tensor) -> None:
        super().__init__(keys, values)
        self.position = position
        self.mask = mask

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new key and value [B, K, 1, D]; return those of all positions."""
        index = self.position.view(-1, 1, 1, 1).expand_as(keys)
        self.keys.scatter_(2, index, keys)
        self.values.scatter_(2, index, values)
        return self.keys, self.values

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend as `LayerCache.attend`, from one token of each row: [B, N, 1, D]."""
        keys, values = self.update(keys, values)
        # The query heads of a group become its tokens, which have the same mask: no attention kernel of a GPU takes
        # both a mask and groups.
        grouped = query.reshape(len(query), keys.shape[1], -1, query.shape[3])  # [B, K, N / K, D]
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self.mask).reshape_as(query)


Cache = KVCache | RowCaches | StaticCache
"""Cache of one pass of the decoder."""
