"""Write any model we can load as a Hugging Face folder: weights, tokenizer, model card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from data_pipelines.tokenize import load_tokenizer
from inference.card.facts import Facts
from inference.card.gather import CARD, find_tuned, gather
from inference.card.text import card_text
from inference.load import load
from inference.tuned import carry_tuned
from models.hf import save_pretrained
from models.peft import save_adapters
from parallel.base import read_base
from parallel.checkpoint import MODEL, TOKENIZER, find_checkpoint
from parallel.pieces import read_adapters
from parallel.verified import verify


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """How to store an exported model."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in the folder."""
    adapter: bool = False
    """Write the adapters of a LoRA run alone, for peft, rather than the model with them merged."""
    license: str | None = None
    """The model's, by its name on the hub, such as apache-2.0, for the card; that of the folder it
    was made from, if that has a card, unless set."""


def export(source: str | Path, folder: str | Path, config: ExportConfig) -> Path:
    """Write a training run, checkpoint, folder or hub model to a folder that transformers loads.

    Adapters are merged into their base in float32, or with `adapter` written alone. README.md says
    what is known of the model, and what was tuned for it goes along.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder is in use, or the source holds no model or no adapters.
        RuntimeError: if the source is a checkpoint that is missing or damaged.
    """
    dtype = getattr(torch, config.dtype)
    if config.adapter:
        return _export_adapters(Path(source), Path(folder), config)
    loaded, tuned = load(source, dtype=dtype, device="cpu"), find_tuned(str(source))
    facts = _facts(source, Path(folder), config, tuned)
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
    if tuned is not None and config.dtype in ("float32", tuned["identity"].dtype):
        carry_tuned(tuned, Path(folder))  # the weights are those that it was measured with
    _write_card(Path(folder), facts)
    return Path(folder)


def _facts(
    source: str | Path, folder: Path, config: ExportConfig, tuned: dict[str, Any] | None
) -> Facts:
    return gather(
        str(source),
        folder,
        dtype=config.dtype,
        license=config.license,
        tuned=tuned,
        is_adapter=config.adapter,
    )


def _write_card(folder: Path, facts: Facts) -> None:
    with (folder / CARD).open("x", encoding="utf-8") as file:  # never in the place of another
        file.write(card_text(facts))


def _export_adapters(source: Path, folder: Path, config: ExportConfig) -> Path:
    checkpoint = find_checkpoint(source)
    base = None if checkpoint is None else read_base(checkpoint)
    if checkpoint is None or base is None or base.lora is None:
        raise ValueError(
            f"{source} has no adapters, being no training run with lora: leave out adapter=true"
        )
    verify(checkpoint, (MODEL, TOKENIZER))
    adapters, dtype = read_adapters(checkpoint), getattr(torch, config.dtype)
    facts = _facts(source, folder, config, None)
    save_adapters(adapters, base.lora, folder, base=base.source, dtype=dtype)
    load_tokenizer(checkpoint / TOKENIZER).save(folder)
    _write_card(folder, facts)
    return folder
