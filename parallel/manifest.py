"""What a checkpoint folder must hold: sizes and checksums of files, shapes of tensors, as JSON.

The manifest's own checksum is in a file beside it, so that no byte of a checkpoint is without one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from parallel.checksum import ALGORITHM, Written, checksum_of_text, read_back

FILE_NAME, DIGEST_NAME = "manifest.json", "manifest.xxh3"
REMEDY = "restore it or take another checkpoint"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is to hold."""

    sizes: Mapping[str, int]
    """Bytes of each file, by its path in the folder."""
    checksums: Mapping[str, str]
    """Of each file; empty in checkpoints from before there were any."""
    tensors: Mapping[str, Any]
    """Shape and dtype of each tensor by name."""


def write_manifest(
    folder: Path, tensors: Mapping[str, Tensor], written: Mapping[str, Written]
) -> None:
    """Record every file of the folder, and every tensor with its whole shape.

    Args:
        folder: of a checkpoint that is complete but for this.
        tensors: weights and optimizer state, of any shape, maybe shards.
        written: files whose checksums are known, by their path in the folder. The others are read,
            and put on the disk for good.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            known = written.get(name) or _settle(path)
            files[name] = {"bytes": known.size, ALGORITHM: known.checksum}
    shapes = {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors.items()
    }
    text = json.dumps({"files": files, "tensors": shapes}, indent=1)
    for name, content in ((FILE_NAME, text), (DIGEST_NAME, checksum_of_text(text) + "\n")):
        (folder / name).write_text(content)
        _settle(folder / name)


def _settle(path: Path) -> Written:
    """Return what a small file holds once it is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return read_back(path)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest after checking that every file is there, whole by its size.

    Raises:
        RuntimeError: naming the folder or file that is missing, cut short or not readable.
    """
    if not folder.is_dir():
        raise RuntimeError(f"no checkpoint at {folder}")
    manifest = _parse(folder)
    for name, size in manifest.sizes.items():
        path = folder / name
        if not path.is_file():
            raise RuntimeError(f"{path} is missing: restore the shard or take another checkpoint")
        if path.stat().st_size != size:
            raise RuntimeError(
                f"{path} has {path.stat().st_size} bytes instead of {size}: it is damaged; {REMEDY}"
            )
    return manifest


def _parse(folder: Path) -> Manifest:
    path = folder / FILE_NAME
    if not path.is_file():
        raise RuntimeError(f"{path} is missing: the checkpoint is not complete; take another one")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        files, tensors = content["files"].items(), dict(content["tensors"])
        for tensor in tensors.values():
            tuple(int(side) for side in tensor["shape"])
        if all(isinstance(size, int) for _, size in files):
            manifest = Manifest(dict(files), {}, tensors)
        else:
            sizes = {str(name): int(file["bytes"]) for name, file in files}
            manifest = Manifest(sizes, {n: str(file[ALGORITHM]) for n, file in files}, tensors)
        named = {Path(name) for name in manifest.sizes}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"{path} is damaged ({reason}): take another checkpoint") from None
    if any(name.is_absolute() or ".." in name.parts for name in named):
        raise RuntimeError(f"{path} names files outside of its folder: take another checkpoint")
    has_digest = bool(manifest.checksums) or (folder / DIGEST_NAME).exists()
    if has_digest and not _is_digest(folder / DIGEST_NAME, text):
        raise RuntimeError(f"{path} is not what {DIGEST_NAME} says: it is damaged; {REMEDY}")
    return manifest


def _is_digest(path: Path, text: str) -> bool:
    """Whether a file is there and holds the checksum of a text."""
    return path.is_file() and path.read_bytes() == f"{checksum_of_text(text)}\n".encode()


def check_tensors(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> None:
    """Check that what is to be read is stored in the same shape.

    Raises:
        ValueError: naming the first tensor that is missing or has another shape.
    """
    for name, tensor in wanted.items():
        if name not in stored:
            raise ValueError(
                f"{folder}: the checkpoint has no {name}; the config describes another model "
                f"than the one that was saved"
            )
        shape = tuple(stored[name]["shape"])
        if shape != tuple(tensor.shape):
            raise ValueError(
                f"{folder}: {name} is {shape} in the checkpoint but {tuple(tensor.shape)} in the "
                "config; use the model section that the checkpoint was trained with"
            )
