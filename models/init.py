"""Fresh weights that depend on the seed and the parameter's name only, not on any layout."""

import hashlib
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.config import LlamaConfig


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of the parts (BLAKE2b)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


RESIDUAL_WRITER = re.compile(r"layers\.(\d+)\.(?:self_attn\.o_proj|mlp\.down_proj)\.weight")

Assign = Callable[[nn.Parameter, Tensor], None]
"""Copies a whole tensor into a parameter, which may hold a shard of it."""


def copy_whole(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Copy a tensor into a parameter that is not sharded."""
    parameter.copy_(tensor)


@torch.no_grad()
def init_weights(
    model: nn.Module, config: LlamaConfig, *, seed: int, assign: Assign = copy_whole
) -> None:
    """Fill a model in place: matrices normal with `initializer_range`, norms one, biases zero.

    What writes into the residual stream starts smaller the deeper it is, so that the
    stream does not grow with depth (as in GPT-2, there by the number of layers).

    Every parameter draws from a generator of its own, seeded by its name, so that a layer's
    weights do not depend on how many layers there are or which rank holds them. One whole parameter
    is in memory at a time.
    """
    for name, parameter in model.named_parameters():
        fresh = torch.empty(parameter.shape, dtype=torch.float32)
        if parameter.dim() == 1:
            fresh.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            generator = torch.Generator().manual_seed(derive_seed("init", seed, name))
            std = config.initializer_range * _residual_scale(name)
            fresh.normal_(0.0, std, generator=generator)
        assign(parameter, fresh)


def _residual_scale(name: str) -> float:
    """Return 1 / sqrt(2 (l + 1)) for the output projections of layer l, 1 for all else."""
    found = RESIDUAL_WRITER.search(name)
    return 1.0 if found is None else (2.0 * (int(found[1]) + 1)) ** -0.5
