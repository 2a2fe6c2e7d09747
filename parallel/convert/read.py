"""What kind of checkpoint a path is, and its contents."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from models.config import LlamaConfig
from models.hf import COMPUTED, EMBEDDING, HEAD
from models.weight_check import check_shapes, parameter_shapes
from models.weight_files import StoredTensor
from parallel.base import read_base
from parallel.checkpoint import find_checkpoint
from parallel.convert.contents import MOMENTS, Contents
from parallel.convert.deepspeed_ranks import is_deepspeed, read_ranks
from parallel.convert.hugging_face import read_hugging_face
from parallel.convert.sharded import read_sharded
from parallel.convert.universal import LATEST_UNIVERSAL, is_universal, read_universal

Format = Literal["dcp", "zero", "hf"]
"""Ours, which any number of ranks and either engine resume; DeepSpeed's; Hugging Face's."""
REMEDY = (
    "give a run of ours or a checkpoint in it, a folder that DeepSpeed saved to or a tag in it, or "
    "a Hugging Face folder"
)


def read_contents(source: Path) -> tuple[Format, Contents]:
    """Return the contents of a checkpoint and their kind; DeepSpeed's both kinds are `zero`.

    Raises:
        ValueError: if it is none that can be read.
        RuntimeError: if a checkpoint of ours is missing or damaged.
    """
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder: {REMEDY}")
    checkpoint = find_checkpoint(source)
    if checkpoint is not None:
        base = read_base(checkpoint)
        if base is not None:
            raise ValueError(
                f"{checkpoint} holds only what was trained beside {base.source}: write a whole "
                "model first, with python -m inference export"
            )
        return "dcp", read_sharded(checkpoint)
    tag = _tag(source)
    if is_universal(tag):
        return "zero", read_universal(tag)
    if is_deepspeed(tag):
        return "zero", read_ranks(tag)
    if tag != source:
        raise ValueError(
            f"{tag} has neither *_optim_states.pt files nor a folder zero: ZeRO stages 1, 2 and 3 "
            "write the former, universal checkpoints have the latter"
        )
    if (source / "config.json").is_file() or any(source.glob("*.gguf")):
        return "hf", read_hugging_face(source)
    raise ValueError(f"{source} holds no checkpoint: {REMEDY}")


def _tag(source: Path) -> Path:
    """Return the folder that DeepSpeed's pointer names; the source itself if there is none."""
    for name in ("latest", LATEST_UNIVERSAL):
        if (source / name).is_file():
            named = (source / name).read_text(errors="replace").strip()
            tag = source / named
            if "\x00" in named or Path(named).name != named or not tag.is_dir():
                raise ValueError(
                    f"{source / name} names {named:.80}, which is not there beside it: copy it"
                )
            return tag
    return source


def fit(contents: Contents) -> Contents:
    """Check that the tensors are those of the model, and leave out what no model needs.

    Raises:
        ValueError: naming the first tensor that is missing, unknown or of another shape.
    """
    config = contents.beside.config
    weights = {n: t for n, t in contents.weights.items() if not n.endswith(COMPUTED)}
    if config is not None:
        weights = _without_tied_head(weights, config, contents.origin)
        check_shapes(
            {name: stored.shape for name, stored in weights.items()},
            parameter_shapes(config),
            origin=str(contents.origin),
        )
    wanted = [f"{key}.{name}" for name in weights for key in (*MOMENTS, "step")]
    if contents.optimizer:
        missing = [name for name in wanted if name not in contents.optimizer]
        if missing:
            raise ValueError(f"{contents.origin} has moments, but no {missing[0]}")
    optimizer = {name: contents.optimizer[name] for name in wanted if contents.optimizer}
    return replace(contents, weights=weights, optimizer=optimizer)


def _without_tied_head(
    weights: dict[str, StoredTensor], config: LlamaConfig, origin: Path
) -> dict[str, StoredTensor]:
    if not config.tie_word_embeddings or not {HEAD, EMBEDDING} <= weights.keys():
        return weights
    if not torch.equal(weights[HEAD].read(), weights[EMBEDDING].read()):
        raise ValueError(
            f"{origin}: tie_word_embeddings is true but {HEAD} differs from {EMBEDDING}: set it to "
            "false in config.json"
        )
    return {name: stored for name, stored in weights.items() if name != HEAD}
