"""What a checkpoint folder must hold: file sizes and tensor shapes, as JSON beside the shards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

FILE_NAME = "manifest.json"


def write_manifest(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Record every file of the folder with its size, and every tensor with its whole shape."""
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    shapes = {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors.items()
    }
    text = json.dumps({"files": files, "tensors": shapes}, indent=1)
    (folder / FILE_NAME).write_text(text)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest after checking that every file is there, whole.

    Raises:
        RuntimeError: naming the folder or file that is missing or cut short.
    """
    if not folder.is_dir():
        raise RuntimeError(f"no checkpoint at {folder}")
    if not (folder / FILE_NAME).is_file():
        raise RuntimeError(
            f"{folder / FILE_NAME} is missing: the checkpoint is not complete; take another one"
        )
    content: dict[str, Any] = json.loads((folder / FILE_NAME).read_text())
    for name, size in content["files"].items():
        path = folder / name
        if not path.is_file():
            raise RuntimeError(f"{path} is missing: restore the shard or take another checkpoint")
        if path.stat().st_size != size:
            raise RuntimeError(
                f"{path} has {path.stat().st_size} bytes instead of {size}: it is damaged; restore "
                "it or take another checkpoint"
            )
    return content


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
