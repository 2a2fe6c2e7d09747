"""Rotary position embeddings (arXiv 2104.09864), with the Llama 3 scaling of long wavelengths.

Letters: B rows, S positions, H heads, E head width.
"""

import math

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
    """Return cos and sin, each (B, S, E), float32, of positions (B, S)."""
    frequencies = inverse_frequencies(config, positions.device)
    angles = positions[..., None].float() * frequencies  # (B, S, E / 2)
    angles = torch.cat((angles, angles), dim=-1)  # (B, S, E)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys x (B, H, S, E) by the angles cos, sin (B, S, E)."""
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]  # (B, 1, S, E)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
