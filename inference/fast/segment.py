"""Consecutive visits of a plan as one call of our kernels.

Letters: B rows, S positions, D width.
"""

from ctypes import POINTER, c_int64, pointer
from typing import Any

import torch
from torch import Tensor

from inference.fast.passes import Passes, write_keys
from inference.fast.structs import Do, Keys, Layer
from models.tokens import Places, Tokens


class Segment:
    """Layers that run one after another, with nothing to see in between."""

    def __init__(self, layers: list[tuple[int, Layer, int]], call: Any, passes: Passes) -> None:
        """Take layer ids, the layers as the kernels see them, and what each is to do."""
        count = len(layers)
        self._ids = [layer for layer, _, _ in layers]
        self._attends = [bool(what & Do.ATTEND) for _, _, what in layers]
        self._structs = [struct for _, struct, _ in layers]
        self._layers = (POINTER(Layer) * count)(*(pointer(each) for each in self._structs))
        self._what = (c_int64 * count)(*(what for _, _, what in layers))
        self._keys = (Keys * count)()
        self._call, self._passes = call, passes

    def run(self, h: Tensor, tokens: Tokens, out: Tensor | None = None) -> Tensor:
        """Return the residual stream (B, S, D) after the layers; they add to the cache.

        Args:
            h: (B, S, D).
            tokens: side data of the S positions, with the cache.
            out: where half a layer is to write what it makes, (B, S, anything); this is returned.
        """
        h = h.contiguous()
        out = torch.empty_like(h) if out is None else out
        places = self._reserve(tokens, h.shape[1])
        for keys, place in zip(self._keys, places, strict=True):
            if place is not None:
                write_keys(keys, place)
        some = next((place for place in places if place is not None), None)
        of_pass, count = self._passes.of(h, tokens, some), len(self._ids)
        self._call(
            self._layers, self._keys, self._what, count, of_pass, h.data_ptr(), out.data_ptr()
        )
        return out

    def _reserve(self, tokens: Tokens, count: int) -> list[Places | None]:
        cache = tokens.cache
        return [
            cache.reserve(layer, count) if attends and cache is not None else None
            for layer, attends in zip(self._ids, self._attends, strict=True)
        ]
