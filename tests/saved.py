"""A small checkpoint on the disk, written in one process, and ways to spoil it."""

import json
import pickle
from pathlib import Path

import torch

from parallel.box_shard import Box
from parallel.checkpoint import MODEL, OPTIMIZER, STATE, step_folder
from parallel.manifest import write_manifest
from parallel.publish import PARTIAL, publish
from parallel.shard_file import write_boxes


def save(checkpoints: Path, step: int) -> Path:
    """Save a checkpoint of two tensors as a run does; return its folder."""
    final = step_folder(checkpoints, step)
    partial = final.with_name(final.name + PARTIAL)
    tensors, written = {}, {}
    for part, name in ((MODEL, "weight"), (OPTIMIZER, "exp_avg.weight")):
        (partial / part).mkdir(parents=True)
        tensors[name] = torch.full((4, 3), float(step))
        file = f"{part}/shard-00001-model-00001-of-00001.safetensors"
        written[file] = write_boxes(partial / file, {name: Box((0, 0), tensors[name])})
    (partial / STATE).write_text(json.dumps({"step": step}))
    write_manifest(partial, tensors, written)
    publish(partial, final)
    return final


def flip(path: Path, at: int = -1) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def without_checksums(checkpoint: Path) -> None:
    """Make of a checkpoint what versions before there were checksums wrote."""
    manifest = checkpoint / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"] = {name: file["bytes"] for name, file in content["files"].items()}
    manifest.write_text(json.dumps(content))
    (checkpoint / "manifest.xxh3").unlink()


class Bomb:
    """When unpickled, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def plant(path: Path, fuse: Path) -> None:
    """Write a pickle that makes the file `fuse` if anybody loads it."""
    path.write_bytes(pickle.dumps(Bomb(fuse)))
