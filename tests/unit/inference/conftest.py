"""Models whose last layers say little, so that drafts are accepted in all numbers; an export."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_pipelines.tokenize import train_sentencepiece
from models.config import LlamaConfig
from models.hf import save_pretrained
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


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    text = "def f(x):\n    return x if x else None  # é 日本\n\nclass A:\n    pass\n"
    train_sentencepiece([text * 4], 300, folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A model's folder in Hugging Face form, with a tokenizer."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    config = tiny_config(vocab_size=300)
    save_pretrained(
        [(name, p.detach()) for name, p in tiny_llama(config).named_parameters()],
        config,
        folder,
        dtype=torch.float64,
        eos_token_id=[1, 7],
    )
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    return folder
