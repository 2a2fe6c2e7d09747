"""Rotary position embeddings (arXiv 2104.09864), with the Llama 3 scaling of long wavelengths.

Letters: B rows, S positions, H heads, E head width.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor

from models.config import LlamaConfig, RopeScaling


def inverse_frequencies(config: LlamaConfig, device: torch.device | None = None) -> Tensor:
    """Return (E / 2,) float32 angles per position, as transformers computes them."""
    steps = torch.arange(0, config.head_width, 2, dtype=torch.int64, device=device).float()
    frequencies = 1.0 / (config.rope_theta ** (steps / config.head_width))
    if config.rope_scaling is None:
        return frequencies
    return _stretch(frequencies, config.rope_scaling)


def _stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide low frequencies by `factor`, keep high ones, and blend in between."""
    length = scaling.original_max_position_embeddings
    low_wavelength = length / scaling.low_freq_factor
    high_wavelength = length / scaling.high_freq_factor
    wavelength = 2 * math.pi / frequencies
    smooth = (length / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    stretched = torch.where(wavelength > low_wavelength, frequencies / scaling.factor, frequencies)
    between = (wavelength <= low_wavelength) & (wavelength >= high_wavelength)
    return torch.where(between, blended, stretched)


def rotary_angles(positions: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each (B, S, E), float32, of positions (B, S); see `rotate`."""
    frequencies = inverse_frequencies(config, positions.device)
    angles = positions[..., None].float() * frequencies  # (B, S, E / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)  # (B, S, E)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys by the angles of their positions.

    Dimension i of a head turns with dimension i + E / 2. The sine comes with its sign, so a turn is
    x * cos + (x, halves swapped) * sin, and the gradient is a turn back.

    Args:
        x: (B, H, S, E).
        cos: (B, S, E) or (1, S, E).
        sin: as cos; the first half of E is negated.
    """
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]  # (B, 1, S, E)
    if x.requires_grad and not torch.compiler.is_compiling():
        return cast(Tensor, _Rotation.apply(x, cos, sin))  # type: ignore[no-untyped-call]
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class _Rotation(torch.autograd.Function):
    """`rotate` with half the memory traffic in the backward pass; the plain line is its oracle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (B, H, S, E) turned by cos and sin (B, 1, S, E), without a copy of x."""
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out
