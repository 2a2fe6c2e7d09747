"""The piece of every parameter that a rank holds, read from wherever the whole model is stored.

No rank ever holds the whole model: a checkpoint's shards, written by any number of ranks, and
safetensors files are read piece by piece. (GGUF is dequantised whole.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.hf import stored_weights
from models.weight_check import check_shapes
from parallel.box_shard import Box, BoxShard
from parallel.checkpoint import MODEL, read_tensors


@dataclass(frozen=True, slots=True)
class Piece:
    """What a rank holds of one parameter."""

    slices: tuple[slice, ...]
    """Of the whole parameter, one for each dimension; they may be empty."""
    values: Tensor
    """The rank's memory for them (any shape)."""
    shape: tuple[int, ...]
    """Of the whole parameter."""


Pieces = Mapping[str, Piece]
"""By the parameter's upstream name; every parameter of the whole model is there."""


def read_checkpoint_pieces(folder: Path, pieces: Pieces) -> None:
    """Fill the pieces from a checkpoint of ours.

    Raises:
        RuntimeError: if a file is missing or damaged.
        ValueError: if a tensor is missing or has another shape.
    """
    read_tensors(folder, MODEL, {name: _as_shard(piece) for name, piece in pieces.items()})


def _as_shard(piece: Piece) -> BoxShard:
    box = Box(tuple(each.start for each in piece.slices), piece.values)
    return BoxShard.wrap([box] if piece.values.numel() else [], piece.shape, like=piece.values)


@torch.no_grad()
def read_pretrained_pieces(source: str | Path, pieces: Pieces) -> None:
    """Fill the pieces from a folder or hub id in Hugging Face form.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; one line with its name.
        RuntimeError: if the hub cannot be reached.
    """
    stored = stored_weights(source)
    check_shapes(
        {name: tensor.shape for name, tensor in stored.items()},
        {name: piece.shape for name, piece in pieces.items()},
        origin=str(source),
    )
    for name, piece in pieces.items():
        if piece.values.numel():
            piece.values.copy_(stored[name].part(piece.slices))
