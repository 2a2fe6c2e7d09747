"""A model sharded by FSDP2 for decoding: for ranks that decode different texts with it."""

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from models.config import LlamaConfig
from models.llama import Llama
from parallel.config import FsdpConfig, ParallelConfig
from parallel.fsdp import make_mesh, shard
from parallel.pieces import Piece
from parallel.world import World


def empty_shards(
    config: LlamaConfig, world: World, dtype: torch.dtype, *, reshard_after_forward: bool
) -> Llama:
    """Return a model of which this rank holds a shard of every parameter, to be filled.

    Args:
        config: of the model.
        world: at least two ranks.
        dtype: of the weights.
        reshard_after_forward: free a layer once it has run. Else every layer stays whole where it
            ran once, and later passes gather nothing. Embedding, norm and head always stay.
    """
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    sharding = ParallelConfig(fsdp=FsdpConfig(reshard_after_forward=reshard_after_forward))
    shard(model, sharding, make_mesh(sharding, world))
    model.to_empty(device=world.device)
    return model


def pieces_of_shards(model: Llama) -> dict[str, Piece]:
    """Return what the rank holds of every parameter."""
    found = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), "every parameter is sharded"
        size, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
        slices = tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))
        found[name] = Piece(slices, parameter.to_local().detach(), tuple(parameter.shape))
    return found
