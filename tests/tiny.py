"""Models small enough to test with: 4 layers, width 64, 4 query and 2 kv heads."""

from typing import Any

import torch

from models.config import LlamaConfig, RopeScaling
from models.init import init_weights
from models.llama import Llama


def tiny_config(**changes: Any) -> LlamaConfig:
    shape: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,  # large enough that layers matter and no logits tie
    }
    return LlamaConfig(**(shape | changes))


def tiny_llama(
    config: LlamaConfig | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Llama:
    config = config or tiny_config()
    model = Llama(config).to(dtype)
    init_weights(model, config, seed=seed)
    return model


VARIANTS = {
    "all heads": tiny_config(num_key_value_heads=4),
    "one kv head, tied": tiny_config(num_key_value_heads=1, head_dim=24, tie_word_embeddings=True),
    "biases, two layers": tiny_config(attention_bias=True, mlp_bias=True, num_hidden_layers=2),
    "llama3 rope, seven layers": tiny_config(
        rope_scaling=RopeScaling(factor=8.0, original_max_position_embeddings=16),
        num_hidden_layers=7,
    ),
}
"""Shapes that every way of decoding has to be right for."""
