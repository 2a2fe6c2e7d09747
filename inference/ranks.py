"""How the ranks that torchrun started share the decoding: one model's parts, or the prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from inference.batch import BatchSettings, generate_batch
from inference.generation import Generation, Settings
from inference.pace import InStep
from models.config import LlamaConfig
from models.llama import Llama
from parallel.pieces import read_checkpoint_pieces, read_pretrained_pieces
from parallel.sharded_llama import empty_shards, pieces_of_shards
from parallel.tensor_share import empty_share, pieces_of_share
from parallel.together import gather_to_first
from parallel.world import World


@dataclass(frozen=True, slots=True)
class Ranks:
    """Two ranks or more, and what they share."""

    world: World
    split: Literal["tensor", "data"] = "tensor"
    """tensor: each holds a part of every layer and all decode the same prompt. data: each decodes
    prompts of its own with weights that are sharded over all."""
    reshard_after_forward: bool = True
    """With data: free a layer's gathered weights once it has run."""


def load_on_ranks(
    config: LlamaConfig,
    source: str | Path,
    *,
    is_checkpoint: bool,
    dtype: torch.dtype,
    ranks: Ranks,
) -> Llama:
    """Return what this rank holds of a model, read from our checkpoint, a folder or the hub.

    Raises:
        ValueError: if the ranks cannot share the model's heads, or the weights are another model's.
        RuntimeError: if a file is missing or damaged.
    """
    model: Llama
    if ranks.split == "tensor":
        model = share = empty_share(config, ranks.world, dtype)
        pieces = pieces_of_share(share)
    else:
        resharding = ranks.reshard_after_forward
        model = empty_shards(config, ranks.world, dtype, reshard_after_forward=resharding)
        pieces = pieces_of_shards(model)
    if is_checkpoint:
        read_checkpoint_pieces(Path(source), pieces)
    else:
        read_pretrained_pieces(source, pieces)
    return model


def generate_dealt(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    batch: BatchSettings,
    settings: Settings,
    world: World,
) -> list[Generation]:
    """Deal prompts over the ranks like cards; return all generations in the prompts' order.

    A prompt's tokens are those that it gets alone. Only rank 0 has the result, the others get
    nothing.

    Args:
        model: sharded over all ranks (`Ranks.split` data).
        prompts: the same on every rank.
        batch: so many prompts at once on each rank.
        settings: for every prompt.
        world: this rank's place.

    Raises:
        ValueError: on every rank, if a prompt or exit does not fit the model.
        RuntimeError: on every rank, if one has failed; it is named.
    """
    own = prompts[world.rank :: world.size]
    mine = list(generate_batch(model, own, batch=batch, settings=settings, pace=InStep(model)))
    dealt = gather_to_first(mine)
    return [dealt[i % world.size][i // world.size] for i in range(len(prompts))] if dealt else []
