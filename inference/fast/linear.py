"""A linear layer in its inference form.

Letters: N features, K inputs, n rows.
"""

from collections.abc import Callable
from ctypes import byref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from inference.fast.choose import Chooser, Multiply
from inference.fast.compiler import library
from inference.fast.pack import Packed, by_block
from inference.fast.structs import Weights

ROWS_AT_ONCE = 256
"""More are done in pieces, so that a piece stays in the processor's cache."""
FEW = 16
"""Up to so many rows, weights that lie as torch has them may go to our kernel."""


class FastLinear(nn.Module):
    """x W' + b by our kernel where it takes the weights, else by torch's fastest.

    Where it was made, there it stays: the kernels have its addresses.
    """

    def __init__(self, packed: Packed, chooser: Chooser) -> None:
        super().__init__()
        self.packed, self.chooser = packed, chooser
        self.struct: Weights | None = None
        self._arrays: tuple[Tensor | None, ...] = ()
        if packed.kind is not None:
            self.struct, self._arrays = _struct(packed)

    @property
    def is_in_tiles(self) -> bool:
        """Whether only our kernel can read the weights, in any number of rows."""
        return self.packed.kind is not None and self.packed.kind.is_tiles

    def prefers_ours(self, x: Tensor) -> bool:
        """Return whether our kernel is to multiply rows x (n, K)."""
        if self.packed.kind is None or self.is_in_tiles:
            return self.is_in_tiles
        if x.shape[0] > FEW or self.packed.scale is not None:
            return x.shape[0] <= FEW
        return self._fastest(x) is None

    def _fastest(self, x: Tensor) -> Multiply | None:
        """Return the fastest way for rows x (n, K); None is our kernel."""
        tries_ours = self.packed.kind is not None and x.shape[0] <= FEW
        return self.chooser.fastest(x, self.packed.data, ours=self.ours if tries_ours else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., N) of x (..., K); not for two gated matrices in tiles."""
        rows = x.reshape(-1, self.packed.shape[1])  # (n, K)
        if not rows.shape[0]:
            out = rows.new_empty(0, self.packed.shape[0])
        elif self.is_in_tiles:
            out = torch.cat([self.ours(part) for part in torch.split(rows, ROWS_AT_ONCE)])
        elif self.prefers_ours(rows) and not self.packed.is_gated:
            out = self.ours(rows)
        else:
            out = self.by_torch(rows)
        return out.reshape(*x.shape[:-1], self.packed.shape[0])

    def by_torch(self, x: Tensor) -> Tensor:
        """Return (n, N) of x (n, K); int8 weights are widened for it."""
        weight, scale, bias = self.packed.data, self.packed.scale, self.packed.bias
        if scale is not None:
            out = x @ weight.t().to(x.dtype) * scale.to(x.dtype)
        else:
            out = (self._fastest(x) or linear)(x, weight)
        return out if bias is None else out + bias

    def ours(self, x: Tensor, _weight: Tensor | None = None) -> Tensor:
        """Return (n, N) of x (n, K) by our kernel.

        Not for two gated matrices: there the kernel gates at once, and what it makes of both fills
        only half of this.
        """
        x = x.contiguous()
        out = x.new_empty(x.shape[0], self.packed.shape[0])
        call = kernel("linear", x.dtype)
        call(byref(self.struct), x.data_ptr(), out.data_ptr(), x.shape[0])  # type: ignore[arg-type]
        return out

    def _apply(self, fn: Any, recurse: bool = True) -> "FastLinear":
        raise RuntimeError("a model in its inference form cannot be moved or cast: do that before")


def kernel(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """Return a function of the compiled kernels, for activations of a dtype."""
    suffix = "bf16" if dtype == torch.bfloat16 else "float"
    found: Callable[..., Any] = getattr(library(), f"skip_{name}_{suffix}")
    return found


def _struct(packed: Packed) -> tuple[Weights, tuple[Tensor | None, ...]]:
    """Return the weights as the kernels see them, and the arrays that must live as long."""
    scale, bias = (by_block(x, is_gated=packed.is_gated) for x in (packed.scale, packed.bias))
    features, inputs = packed.shape
    struct = Weights(
        packed.data.data_ptr(),
        None if scale is None else scale.data_ptr(),
        None if bias is None else bias.data_ptr(),
        inputs,
        features // 2 if packed.is_gated else features,
        int(packed.kind or 0),
        int(packed.is_gated),
    )
    return struct, (scale, bias)
