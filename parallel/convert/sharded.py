"""Our own checkpoints: boxes of tensors in safetensors files, read and written by one process."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.weight_files import StoredTensor
from parallel.box_shard import Box
from parallel.checkpoint import (
    CHECKPOINTS,
    MODEL,
    OPTIMIZER,
    read_state,
    step_folder,
)
from parallel.checksum import Written
from parallel.convert.beside import RUN_CONFIG, find_beside, write_beside
from parallel.convert.contents import Contents, progress, read_master
from parallel.manifest import read_manifest, write_manifest
from parallel.publish import point_to
from parallel.shard_file import write_boxes
from parallel.verified import verify

FILE_BYTES = 2**30
"""About as much goes into one file, and is in memory at once, unless one tensor is larger."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A box of a tensor in a file."""

    file: Path
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def read_sharded(checkpoint: Path) -> Contents:
    """Return the contents of a checkpoint of ours, written by any number of ranks.

    Raises:
        RuntimeError: if a file is missing or damaged.
    """
    verify(checkpoint)
    state = read_state(checkpoint)
    tensors = read_manifest(checkpoint).tensors
    weights = _stored(checkpoint / MODEL, tensors)
    optimizer = _stored(checkpoint / OPTIMIZER, tensors)
    lost = sorted(tensors.keys() - weights.keys() - optimizer.keys())
    if lost:
        raise RuntimeError(f"{checkpoint}: {lost[0]} is in no shard: take another checkpoint")
    return Contents(
        origin=checkpoint,
        step=state["step"],
        weights=weights,
        optimizer=optimizer,
        beside=find_beside(checkpoint),
    )


def _stored(folder: Path, described: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Return the tensors of one part of a checkpoint; reads the headers of its files."""
    pieces: dict[str, list[_Piece]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                sharding = json.loads(opened.metadata()["DCP_SHARDING_INFO"])
                for name in opened.keys():  # noqa: SIM118 - it is not a dict
                    shape = tuple(opened.get_slice(name).get_shape())
                    offset = tuple(sharding[name]["saved_offsets"])
                    pieces.setdefault(name, []).append(_Piece(file, offset, shape))
        except SafetensorError as error:
            raise RuntimeError(f"{file} cannot be read ({error}): restore it") from None
    stored = {}
    for name, parts in pieces.items():
        shape = tuple(described[name]["shape"])
        found = sum(prod(piece.shape) for piece in parts)
        if found != prod(shape):
            raise RuntimeError(
                f"{folder}: the shards hold {found} of the {prod(shape)} elements of {name}: take "
                "another checkpoint"
            )
        dtype = getattr(torch, described[name]["dtype"])
        stored[name] = StoredTensor(shape, partial(_assemble, name, parts, shape, dtype))
    return stored


def _assemble(
    name: str, pieces: list[_Piece], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Put a tensor of a shape together."""
    whole = torch.empty(shape, dtype=dtype)
    for piece in pieces:
        sides = zip(piece.offset, piece.shape, strict=True)
        with safe_open(piece.file, framework="pt") as opened:
            whole[tuple(slice(a, a + n) for a, n in sides)] = opened.get_tensor(name)
    return whole


def write_run(contents: Contents, folder: Path) -> None:
    """Write a run folder with one checkpoint in it.

    Args:
        contents: with a config, and names that are its parameters'.
        folder: exists, and is empty.
    """
    checkpoints = folder / CHECKPOINTS
    checkpoint = step_folder(checkpoints, contents.step)
    checkpoint.mkdir(parents=True)
    described: dict[str, Tensor] = {}
    written: dict[str, Written] = {}
    for part, stored in ((MODEL, contents.weights), (OPTIMIZER, contents.optimizer)):
        shapes, files = _write_part(checkpoint / part, stored)
        described |= shapes
        written |= files
    write_beside(contents.beside, checkpoint, contents.step)
    write_manifest(checkpoint, described, written)
    point_to(checkpoint)
    if contents.beside.run_config is not None:
        text = contents.beside.run_config.read_text()
        (folder / RUN_CONFIG).write_text(text)


def _write_part(
    folder: Path, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, Tensor], dict[str, Written]]:
    """Write tensors to files of bounded size.

    Returns:
        Empty tensors of their shapes and dtypes, and the files by their paths in the checkpoint.
    """
    groups = _files(stored)
    ends = {names[-1]: number for number, names in enumerate(groups, start=1)}
    described: dict[str, Tensor] = {}
    written: dict[str, Written] = {}
    boxes: dict[str, Box] = {}
    for name in progress(stored, folder.name):
        tensor = read_master(stored[name])
        boxes[name] = Box((0,) * tensor.dim(), tensor)
        described[name] = torch.empty_like(tensor, device="meta")
        if name in ends:
            folder.mkdir(exist_ok=True)
            number = f"{ends[name]:05d}-of-{len(groups):05d}"
            file = f"shard-00001-model-{number}.safetensors"
            written[f"{folder.name}/{file}"] = write_boxes(folder / file, boxes)
            boxes = {}
    return described, written


def _files(stored: Mapping[str, StoredTensor]) -> list[list[str]]:
    """Divide tensors, in float32, among files."""
    groups: list[list[str]] = []
    room = 0
    for name, tensor in stored.items():
        size = 4 * prod(tensor.shape)
        if not groups or size > room:
            groups.append([])
            room = FILE_BYTES
        groups[-1].append(name)
        room -= size
    return groups
