"""Write any model we can load as a Hugging Face folder, with tokenizer and generation config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from data_pipelines.tokenize import load_tokenizer
from inference.load import load
from models.hf import save_pretrained
from models.peft import save_adapters
from parallel.base import read_base
from parallel.checkpoint import TOKENIZER, find_checkpoint
from parallel.pieces import read_adapters


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """How to store an exported model."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in the folder."""
    adapter: bool = False
    """Write the adapters of a LoRA run alone, for peft, rather than the model with them merged."""


def export(source: str | Path, folder: str | Path, config: ExportConfig) -> Path:
    """Write a training run, checkpoint, folder or hub model to a folder that transformers loads.

    Adapters are merged into their base in float32, or with `adapter` written alone.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder is in use, or the source holds no model or no adapters.
        RuntimeError: if the source is a checkpoint that is missing or damaged.
    """
    dtype = getattr(torch, config.dtype)
    if config.adapter:
        return _export_adapters(Path(source), Path(folder), dtype)
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


def _export_adapters(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    checkpoint = find_checkpoint(source)
    base = None if checkpoint is None else read_base(checkpoint)
    if checkpoint is None or base is None or base.lora is None:
        raise ValueError(
            f"{source} has no adapters, being no training run with lora: leave out adapter=true"
        )
    adapters = read_adapters(checkpoint)
    save_adapters(adapters, base.lora, folder, base=base.source, dtype=dtype)
    load_tokenizer(checkpoint / TOKENIZER).save(folder)
    return folder
