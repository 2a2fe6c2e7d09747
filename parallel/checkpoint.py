"""Sharded checkpoints: safetensors shards and JSON, readable by any number of ranks.

The shards have the safetensors layout of torch's distributed checkpoint (DCP), so nothing in a
checkpoint is a pickle. `parallel/checkpointer.py` writes them, `parallel/verified.py` checks them.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from models.llama import Llama
from parallel.manifest import check_tensors, read_manifest
from parallel.publish import latest

CHECKPOINTS = "checkpoints"
"""In a run: the folder of its checkpoints."""
MODEL, OPTIMIZER, TOKENIZER, STATE = "model", "optimizer", "tokenizer", "state.json"
"""Parts of one checkpoint."""


def step_folder(checkpoints: Path, step: int) -> Path:
    """Return where the checkpoint after `step` optimiser steps lives."""
    return checkpoints / f"step_{step:08d}"


def find_checkpoint(source: Path) -> Path | None:
    """Return the checkpoint that a run's folder, its `checkpoints`, or one of those stands for.

    None means that the source is no part of a training run.

    Raises:
        RuntimeError: if the run has saved nothing yet.
    """
    if (source / STATE).is_file() and (source / MODEL).is_dir():
        return source
    for folder in (source / CHECKPOINTS, source):
        if folder.name == CHECKPOINTS and folder.is_dir():
            newest = latest(folder)
            if newest is None:
                raise RuntimeError(
                    f"{folder} holds no complete checkpoint yet: let the run save one"
                )
            return newest
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """Return the JSON state of a checkpoint, after checking that its files are complete.

    Raises:
        RuntimeError: naming what is missing or damaged.
    """
    read_manifest(folder)
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {**state, "step": int(state["step"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"{path} is damaged ({reason}): take another checkpoint") from None


def read_tensors(folder: Path, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Read the named tensors of one part into place, each rank only what its shards need.

    Args:
        folder: a checkpoint, written by any number of ranks.
        part: MODEL or OPTIMIZER.
        tensors: plain tensors or shards, overwritten.

    Raises:
        RuntimeError: if a file is missing or damaged.
        ValueError: if a tensor is missing or has another shape.
    """
    check_tensors(folder, read_manifest(folder).tensors, tensors)
    alone = not dist.is_initialized()
    reader = HuggingFaceStorageReader(str(folder / part))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # we know
            load(dict(tensors), storage_reader=reader, no_dist=alone)
    except (SafetensorError, CheckpointException) as error:
        reason = " ".join(str(error).split())[:300]
        raise RuntimeError(
            f"{folder / part} cannot be read ({reason}): take another checkpoint"
        ) from None


def read_model(folder: Path, model: Llama) -> None:
    """Read a checkpoint's weights shard by shard straight into a model, sharded or not.

    Raises:
        RuntimeError: if a file is missing or damaged.
        ValueError: if a tensor is missing or has another shape.
    """
    read_tensors(folder, MODEL, {name: p.detach() for name, p in model.named_parameters()})
