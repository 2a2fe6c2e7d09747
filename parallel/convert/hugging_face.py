"""Hugging Face folders: weights, config and tokenizer, nothing of an optimizer."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.hf import read_config, save_pretrained, stored_weights
from parallel.convert.beside import copy_tokenizer, find_beside
from parallel.convert.contents import Contents, progress

SHARD_BYTES = 10**9
"""At most as much is in memory at once, unless one tensor is larger."""


def read_hugging_face(folder: Path) -> Contents:
    """Return the contents of a folder, safetensors or GGUF.

    Raises:
        ValueError: if it holds no Llama, or its files are incomplete.
    """
    beside = find_beside(folder)
    if beside.config is None:  # GGUF has it inside
        beside = replace(beside, config=read_config(folder))
    weights = stored_weights(folder)
    return Contents(origin=folder, step=0, weights=weights, optimizer={}, beside=beside)


def write_hugging_face(contents: Contents, folder: Path) -> None:
    """Write a folder that transformers loads, in the dtype that the weights are stored in.

    Args:
        contents: with a config, and names that are its parameters'.
        folder: exists, and is empty.
    """
    config, special = contents.beside.config, contents.beside.special
    assert config is not None, "checked before"
    first = next(iter(contents.weights.values())).read().dtype
    save_pretrained(
        _weights(contents),
        config,
        folder,
        dtype=first if first == torch.float64 else torch.float32,
        max_shard_bytes=SHARD_BYTES,
        bos_token_id=special.get("bos_token_id"),
        eos_token_id=special.get("eos_token_id"),
    )
    copy_tokenizer(contents.beside, folder)


def _weights(contents: Contents) -> Iterator[tuple[str, Tensor]]:
    for name in progress(contents.weights, "weights"):
        yield name, contents.weights[name].read()
