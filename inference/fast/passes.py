"""What a pass tells our kernels: where its angles are, and where its keys and values go.

Letters: B rows, S positions, T longest sequence, D width, E head width.
"""

import weakref
from ctypes import byref
from typing import Any

from torch import Tensor

from inference.fast.structs import Keys, Pass
from models.tokens import Places, Tokens


class Passes:
    """Remembers the last pass, because all layers of a pass ask for the same.

    Nothing that belongs to a generation is kept alive.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._cos: weakref.ref[Tensor] | None = None
        self._angles: tuple[Tensor, Tensor] | None = None
        self._pass: Any = None

    def of(self, h: Tensor, tokens: Tokens, places: Places | None) -> Any:
        """Return a reference to the pass of h (B, S, D), for all its layers."""
        cos = tokens.cos
        strides = (0, 0) if places is None else (places.keys.stride(0), places.keys.stride(1))
        key = (h.shape, h.dtype, strides)
        if self._cos is None or self._cos() is not cos or self._key != key:
            self._cos, self._key = weakref.ref(cos), key
            self._pass = byref(self._make(h, tokens, strides))
        return self._pass

    def _make(self, h: Tensor, tokens: Tokens, strides: tuple[int, int]) -> Pass:
        cos, sin = tokens.cos.to(h.dtype), tokens.sin.to(h.dtype)  # (B or 1, S, E)
        self._angles = None if cos is tokens.cos else (cos, sin)  # the addresses must live on
        row, position = cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1)
        return Pass(cos.data_ptr(), sin.data_ptr(), row, position, *h.shape[:2], *strides)


def write_keys(keys: Keys, places: Places) -> None:
    """Say where a layer's keys go."""
    all_keys, values, positions, first, longest = places
    keys.keys, keys.values = all_keys.data_ptr(), values.data_ptr()
    keys.starts = positions.data_ptr() + 8 * first
    keys.starts_stride, keys.longest = positions.stride(0), longest
