"""Keys and values of earlier positions in static buffers, with a length for every layer.

Letters: B rows, S new positions, T cached positions, G kv heads, E head width.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from models.config import LlamaConfig
from models.tokens import Places


class KVCache:
    """Buffers allocated once for the longest sequence; appending writes, cropping moves a mark.

    Layers may be at different lengths: while drafting, the layers that run are ahead of the rest.
    Only its owner, the decoding loop, appends to it (through `models.tokens`) and crops it.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        layers: Iterable[int],
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        rows: int = 1,
    ) -> None:
        shape = (rows, config.kv_heads, max_length, config.head_width)
        self.max_length = max_length
        self.lengths = dict.fromkeys(layers, 0)
        """Number of positions that each layer holds."""
        self._positions = torch.arange(max_length, device=device).expand(rows, -1)  # (B, T)
        self._keys, self._values = (
            {layer: torch.empty(shape, dtype=dtype, device=device) for layer in self.lengths}
            for _ in range(2)
        )

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, G, S, E) of one layer; return views of all (B, G, T + S, E).

        Raises:
            RuntimeError: if the buffer is full; nothing is written then.
        """
        start, end = self._advance(layer, keys.shape[2])
        all_keys, all_values = self._keys[layer], self._values[layer]
        all_keys.narrow(2, start, end - start).copy_(keys)
        all_values.narrow(2, start, end - start).copy_(values)
        return all_keys.narrow(2, 0, end), all_values.narrow(2, 0, end)

    def reserve(self, layer: int, count: int) -> Places:
        """Make room for `count` positions of one layer, whose buffers (B, G, T, E) are returned.

        Raises:
            RuntimeError: if the buffer is full.
        """
        start, end = self._advance(layer, count)
        return Places(self._keys[layer], self._values[layer], self._positions, start, end)

    def _advance(self, layer: int, added: int) -> tuple[int, int]:
        start = self.lengths[layer]
        end = start + added
        if end > self.max_length:
            raise RuntimeError(f"layer {layer}: {end} positions, cache holds {self.max_length}")
        self.lengths[layer] = end
        return start, end

    def crop(self, length: int, *, first_layer: int = 0) -> None:
        """Forget positions from `length` on, in layers from `first_layer` on; no data moves."""
        for layer, held in self.lengths.items():
            if layer >= first_layer:
                self.lengths[layer] = min(held, length)
