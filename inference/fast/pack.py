"""A linear layer's weights, laid out as the kernels read them, in the dtype or as int8.

Letters: N features, K inputs, F features of each of two gated matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from inference.fast.compiler import library
from inference.fast.structs import Kind

WIDTH, DEPTH = 16, 32
"""Features and inputs of a tile, as in `native/weights.h`."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One matrix, or two that gate each other, one above the other."""

    data: Tensor
    """(N, K); or tiles (N / 16, K / 32, 16, 16, 2): pairs of inputs of 16 features side by side."""
    scale: Tensor | None
    """(N,) float32, of int8: the weight is data * scale."""
    bias: Tensor | None
    """(N,) in the model's dtype."""
    kind: Kind | None
    """None: torch's kernels only."""
    shape: tuple[int, int]
    """N and K."""
    is_gated: bool


def pack(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    *,
    is_int8: bool = False,
    is_gated: bool = False,
) -> Packed:
    """Return linear layers of the same input as one.

    Args:
        weights: each (N, K); their features follow each other.
        biases: each (N,), all or none.
        is_int8: rounds the weights of each feature to 255 steps.
        is_gated: there are two matrices, and silu of the first's features gates the second's.
    """
    weight = torch.cat([each.detach() for each in weights]) if len(weights) > 1 else weights[0]
    bias = torch.cat([b.detach() for b in biases if b is not None]) if _has(biases) else None
    weight, dtype = weight.detach(), weight.dtype
    kind, shape = kind_of(dtype, weight.device, is_int8=is_int8), (*weight.shape,)
    scale = None
    if is_int8:
        weight, scale = quantised(weight)
    data = weight.contiguous()
    if kind is not None and kind.is_tiles:
        data = tiles(in_blocks(weight) if is_gated else weight)
    return Packed(data, scale, bias, kind, (shape[0], shape[1]), is_gated)


def _has(biases: Sequence[Tensor | None]) -> bool:
    return all(bias is not None for bias in biases)


def kind_of(dtype: torch.dtype, device: torch.device, *, is_int8: bool) -> Kind | None:
    """Return how weights of a dtype lie for our kernels; None if these cannot take them."""
    kernels = library() if device.type == "cpu" else None
    if kernels is None or dtype not in (torch.float32, torch.bfloat16):
        return None
    if dtype == torch.bfloat16 and kernels.skip_has_tiles():
        return Kind.TILES_INT8 if is_int8 else Kind.TILES
    if is_int8:
        return Kind.ROWS_INT8
    return Kind.ROWS_FLOAT if dtype == torch.float32 else Kind.ROWS_BF16


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 weights (N, K) and their scale (N,), the greatest of a feature being 127."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127  # (N,)
    return (wide / scale[:, None]).round().to(torch.int8), scale


def in_blocks(x: Tensor) -> Tensor:
    """Return two gated matrices (2F, ...) as blocks of 16 rows that take turns, filled with zeros.

    Shape (2 * F rounded up to 16, ...).
    """
    gate, up = (_filled(half, WIDTH) for half in x.chunk(2))
    gate, up = (half.reshape(-1, WIDTH, *x.shape[1:]) for half in (gate, up))
    return torch.stack((gate, up), dim=1).flatten(0, 2)


def by_block(x: Tensor | None, *, is_gated: bool) -> Tensor | None:
    """Return a number for each feature (N,), as the kernels look it up: float32, whole blocks."""
    if x is None:
        return None
    return (in_blocks(x) if is_gated else _filled(x, WIDTH)).float().contiguous()


def tiles(weight: Tensor) -> Tensor:
    """Return (N / 16, K / 32, 16, 16, 2) of weights (N, K), both rounded up with zeros."""
    whole = _filled(_filled(weight, WIDTH).t(), DEPTH).t()  # (N, K), rounded up
    features, inputs = whole.shape
    split = whole.reshape(features // WIDTH, WIDTH, inputs // DEPTH, WIDTH, 2)
    return split.permute(0, 2, 3, 1, 4).contiguous()


def _filled(x: Tensor, unit: int) -> Tensor:
    """Return x (N, ...) with zeros after it, up to a multiple of the unit."""
    missing = -x.shape[0] % unit
    return pad(x, (*(0 for _ in range(2 * (x.dim() - 1))), 0, missing)) if missing else x
