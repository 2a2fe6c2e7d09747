"""Keys and values of many sequences, each as long as it is: one static buffer a layer.

A key lies at its position. So a pass that writes at positions sees what it may see by comparing
positions, whatever later garbage a rejected draft has left, and nothing is ever cropped or moved
but when a finished row makes room.

Letters: R rows in flight, S new positions, T longest sequence, W positions looked at, G kv heads,
E head width.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import LlamaConfig
from models.tokens import Places, Tokens


class RowCache:
    """Buffers for so many rows; the owner says in which rows and where a pass writes."""

    def __init__(
        self,
        config: LlamaConfig,
        *,
        layers: Iterable[int],
        rows: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (rows, config.kv_heads, max_length, config.head_width)
        # Zeros: what a mask hides is still multiplied, by 0, and 0 * NaN would be NaN.
        self._buffers = {
            layer: (
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for layer in layers
        }

    def writer(self, positions: Tensor, *, first: int, width: int) -> "Writer":
        """Return the cache of one pass over consecutive rows.

        Args:
            positions: (R, S), where their new keys go.
            first: the first of R rows.
            width: W, beyond which no key is looked at.
        """
        return Writer(self, positions, first, width)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` keys and values of a row to another row's place."""
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer[target, :, :length].copy_(buffer[source, :, :length])

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, each (rows, G, T, E)."""
        return self._buffers[layer]


@dataclass(frozen=True, slots=True, eq=False)
class Writer:
    """What attention sees of the cache in one pass; see `RowCache.writer`."""

    cache: RowCache
    positions: Tensor
    """(R, S)."""
    first: int
    width: int

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (R, G, S, E) at their positions; return views (R, G, W, E)."""
        index = self.positions[:, None, :, None].expand_as(keys)
        seen = []
        for buffer, new in zip(self.cache.layer(layer), (keys, values), strict=True):
            mine = buffer.narrow(0, self.first, keys.shape[0])  # (R, G, T, E)
            mine.scatter_(2, index, new)
            seen.append(mine.narrow(2, 0, self.width))
        return seen[0], seen[1]

    def reserve(self, layer: int, count: int) -> Places:
        """Return a layer's buffers of these rows (R, G, T, E); all its positions are written."""
        rows = self.positions.shape[0]
        keys, values = (x.narrow(0, self.first, rows) for x in self.cache.layer(layer))
        return Places(keys, values, self.positions, 0, self.width)


def row_tokens(cos: Tensor, sin: Tensor, writer: Writer) -> Tokens:
    """Return the side data of a pass that writes by `writer`.

    A pass that begins a sequence and looks at nothing but itself is causal and needs no mask.

    Args:
        cos: (1, T, E) of all positions.
        sin: as cos.
        writer: has the positions (R, S).
    """
    positions, width = writer.positions, writer.width
    cos, sin = cos[0][positions], sin[0][positions]  # (R, S, E)
    if positions.shape[1] == width:
        return Tokens(cos, sin, cache=writer)
    hidden = torch.arange(width, device=positions.device) > positions[..., None]  # (R, S, W)
    mask = torch.zeros(hidden.shape, dtype=cos.dtype, device=cos.device)
    mask.masked_fill_(hidden, float("-inf"))
    return Tokens(cos, sin, mask[:, None], writer)
