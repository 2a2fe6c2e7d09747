"""Models whose last layers say little, so that drafts are accepted in all numbers."""

from collections.abc import Callable

import pytest
import torch

from models.config import LlamaConfig
from models.llama import Llama
from tests.tiny import tiny_config, tiny_llama

Quiet = Callable[..., Llama]


@pytest.fixture
def quiet_llama() -> Quiet:
    return _quiet_llama


def _quiet_llama(
    quiet: float,
    *,
    above: int = 1,
    config: LlamaConfig | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Llama:
    """Return a model whose layers from `above` on add `quiet` times what they would."""
    model = tiny_llama(config or tiny_config(), seed=seed, dtype=dtype)
    with torch.no_grad():
        for layer in range(above, model.config.num_hidden_layers):
            block = model.layers[str(layer)]
            block.self_attn.o_proj.weight.mul_(quiet)
            block.mlp.down_proj.weight.mul_(quiet)
    return model
