"""Fresh weights that depend on the seed and the parameter's name only, not on any layout."""

import hashlib

import torch
from torch import nn

from models.config import LlamaConfig


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of the parts (BLAKE2b)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def init_weights(model: nn.Module, config: LlamaConfig, *, seed: int) -> None:
    """Fill a model in place: matrices normal with `initializer_range`, norms one, biases zero.

    Every parameter draws from a generator of its own, seeded by its name, so that a layer's
    weights do not depend on how many layers there are or which rank holds them.
    """
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            generator = torch.Generator().manual_seed(derive_seed("init", seed, name))
            fresh = torch.empty(parameter.shape, dtype=torch.float32)
            fresh.normal_(0.0, config.initializer_range, generator=generator)
            parameter.copy_(fresh)
