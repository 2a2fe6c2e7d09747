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
from models.llama import Llama
from models.lora import is_adapter, merged
from models.weight_check import check_shapes
from models.weight_files import StoredTensor
from parallel.base import Base, read_base, weights_of_base
from parallel.box_shard import Box, BoxShard
from parallel.checkpoint import MODEL, read_tensors
from parallel.manifest import read_manifest


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


def pieces_of_whole(model: Llama) -> dict[str, Piece]:
    """Return the pieces of a model that one process holds whole."""
    return {
        name: Piece(tuple(slice(0, side) for side in p.shape), p.detach(), tuple(p.shape))
        for name, p in model.named_parameters()
    }


def read_checkpoint_pieces(folder: Path, pieces: Pieces) -> None:
    """Fill the pieces from a checkpoint of ours; adapters in it are merged into its base.

    Raises:
        RuntimeError: if a file is missing or damaged, or the base is gone or has changed.
        ValueError: if a tensor is missing or has another shape.
    """
    base = read_base(folder)
    if base is None:
        read_tensors(folder, MODEL, {name: _as_shard(piece) for name, piece in pieces.items()})
        return
    there = _stored_shapes(folder)
    trained = {name: piece for name, piece in pieces.items() if name in there}
    stored = weights_of_base(folder, base)
    frozen = {name: piece for name, piece in pieces.items() if name not in there}
    _read_frozen(stored, frozen, read_adapters(folder), base)
    read_tensors(folder, MODEL, {name: _as_shard(piece) for name, piece in trained.items()})


def read_adapters(folder: Path) -> dict[str, Tensor]:
    """Return the adapters of a checkpoint by name, in float32; none if it has no adapters."""
    shapes = _stored_shapes(folder)
    adapters = {name: torch.empty(shape) for name, shape in shapes.items() if is_adapter(name)}
    if adapters:
        read_tensors(folder, MODEL, adapters)
    return adapters


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    tensors = read_manifest(folder).tensors
    return {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}


@torch.no_grad()
def _read_frozen(
    stored: Mapping[str, StoredTensor], pieces: Pieces, adapters: Mapping[str, Tensor], base: Base
) -> None:
    """Fill the pieces of what was not trained, each with its part of the adapters beside it."""
    for name, piece in pieces.items():
        if not piece.values.numel():
            continue
        values = stored[name].part(piece.slices)
        beside = name.removesuffix(".weight")
        if f"{beside}.lora_A.weight" in adapters:
            assert base.lora is not None, "who trains adapters says so"
            rows, columns = piece.slices
            a = adapters[f"{beside}.lora_A.weight"][:, columns]
            b = adapters[f"{beside}.lora_B.weight"][rows]
            values = merged(values, a, b, base.lora.scale)
        piece.values.copy_(values)


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
