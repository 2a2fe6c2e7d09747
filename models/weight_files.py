"""Safetensors files of a model folder: one, or shards with an index. Read and written lazily."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.json_file import read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of weights that torch has pickled."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that is read only when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Returns it, of `shape`, in the dtype it was stored in, on the CPU."""
    read_part: Callable[[tuple[slice, ...]], Tensor] | None = None
    """As read, only what the slices name; None where a part costs what the whole does."""

    def part(self, slices: tuple[slice, ...]) -> Tensor:
        """Return what the slices cut from the tensor (any shape); a file gives only that much."""
        return self.read()[slices] if self.read_part is None else self.read_part(slices)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a folder's safetensors by name; reads the headers only.

    Raises:
        ValueError: no safetensors there, or pickles instead; a shard that the index names is
            missing, or one is cut short; one line with the file's name.
    """
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / SINGLE).is_file():
        return dict(_header(folder / SINGLE))
    pickles = sorted(p for end in PICKLES for p in folder.glob(f"*{end}"))
    if pickles:
        raise ValueError(
            f"{pickles[0]} is a pickle, which may run any code and is never loaded: take the "
            f"model's safetensors, or convert it where you trust it with transformers' "
            "save_pretrained"
        )
    raise ValueError(
        f"{folder} holds neither {SINGLE} nor {INDEX}: convert other formats with "
        "transformers' save_pretrained"
    )


def _indexed(folder: Path) -> dict[str, StoredTensor]:
    placed = _placed(folder / INDEX)
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(placed.values())):
        if not (folder / file).is_file():
            raise ValueError(
                f"{folder / file} is missing although {INDEX} names it: copy or download it again"
            )
        found |= _header(folder / file)
    for name, file in placed.items():
        if name not in found:
            raise ValueError(f"{folder / file} lacks {name} although {INDEX} says it holds it")
    return found


def _placed(index: Path) -> dict[str, str]:
    """Return which file of its folder holds each tensor, as an index says."""
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict):
        raise ValueError(f"{index} is not an index of shards: it has no weight_map")
    for name, file in placed.items():
        if not isinstance(file, str) or not file or Path(file).name != file or file == "..":
            raise ValueError(
                f"{index}: {name} is said to be in {file!r:.80}, which is not the name of a file "
                "beside it: copy or download it again"
            )
    return placed


def _header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is not a dict
                shape = tuple(opened.get_slice(name).get_shape())
                parts = partial(_read_part, file, name)
                yield name, StoredTensor(shape, partial(_read, file, name), parts)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}): copy or download it again") from None


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
        return tensor


def _read_part(file: Path, name: str, slices: tuple[slice, ...]) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_slice(name)[slices]
        return tensor


def write_tensors(
    weights: Iterable[tuple[str, Tensor]], folder: Path, *, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    """Write tensors to model.safetensors, or to shards with an index when they need several.

    At most one shard is in memory, so weights may be gathered one at a time.

    Args:
        weights: names and tensors, of any shape and dtype, on any device.
        folder: exists, and has no weights yet.
        dtype: to store in.
        max_shard_bytes: a larger tensor gets a shard of its own.
    """
    shards: list[list[str]] = []
    total_bytes = 0
    for shard in _shards(weights, dtype, max_shard_bytes):
        shards.append(list(shard))
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
        save_file(shard, folder / f"{len(shards)}.part", metadata={"format": "pt"})
    _name_shards(folder, shards, total_bytes)


def _shards(
    weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, max_bytes: int
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in weights:
        # Copied, because safetensors refuses views of a larger storage.
        stored = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        if shard and sum(t.nbytes for t in shard.values()) + stored.nbytes > max_bytes:
            yield shard
            shard = {}
        shard[name] = stored
    yield shard


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    """Give the parts their final names, which say how many there are, and write the index."""
    if len(shards) == 1:
        (folder / "1.part").rename(folder / SINGLE)
        return
    placed: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        placed |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
