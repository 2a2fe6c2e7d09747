"""Fresh weights that depend on the seed and the parameter's name only, not on any layout."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.config import LlamaConfig


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of the parts (BLAKE2b)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


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
            fresh.normal_(0.0, config.initializer_range, generator=generator)
        assign(parameter, fresh)
