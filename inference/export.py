"""Write any model we can load as a Hugging Face folder, with tokenizer and generation config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from inference.load import load
from models.hf import save_pretrained


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """How to store an exported model."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in the folder."""


def export(source: str | Path, folder: str | Path, config: ExportConfig) -> Path:
    """Write a training run, checkpoint, folder or hub model to a folder that transformers loads.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder is in use, or the source holds no model.
        RuntimeError: if the source is a checkpoint that is missing or damaged.
    """
    dtype = getattr(torch, config.dtype)
    loaded = load(source, dtype=dtype, device="cpu")
    named = [(name, p.detach()) for name, p in loaded.model.named_parameters()]
    ends = sorted(loaded.eos_ids)
    save_pretrained(
        named,
        loaded.config,
        folder,
        dtype=dtype,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        bos_token_id=loaded.tokenizer.bos_id,
    )
    loaded.tokenizer.save(folder)
    return Path(folder)
