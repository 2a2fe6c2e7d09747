"""Which model, in which precision, on what: what measurements of it are good for."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from parallel.base import BASE
from parallel.checkpoint import MODEL, find_checkpoint

_BLOCKS, _BLOCK_BYTES = 64, 4096
"""So much of every file is read: all of a small one, and enough of weights to know them by."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Measurements hold where all of this is the same."""

    model: str
    """The checkpoint's or folder's own name, so that a moved run stays the same; or the hub id."""
    weights: str
    """Digest of config and weights, of parts of large files; `hub` for a hub id."""
    dtype: str
    device: str
    """Its name: speeds differ between machines."""

    def difference(self, other: "Identity") -> str | None:
        """Return the first thing that differs, as `dtype float32, not bfloat16`; None if none."""
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        return next((f"{name} {a}, not {b}" for (name, a), b in pairs if a != b), None)


def identify(source: str, *, dtype: str, device: str) -> Identity:
    """Return what a model is known by; its weights are not loaded.

    Raises:
        RuntimeError: if a run has saved nothing yet.
    """
    checkpoint = find_checkpoint(Path(source))
    folder = Path(source) if checkpoint is None else checkpoint / MODEL
    if not folder.is_dir():
        return Identity(source, "hub", dtype, device)
    kinds = ("config.json", BASE, "*.safetensors", "*.gguf")
    files = sorted(file for kind in kinds for file in folder.glob(kind))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        _add(digest, file)
    name = (checkpoint or folder.resolve()).name
    return Identity(name, digest.hexdigest()[:16], dtype, device)


def _add(digest: "hashlib._Hash", file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _BLOCKS * _BLOCK_BYTES:
            digest.update(stream.read())
            return
        for block in range(_BLOCKS):
            stream.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
            digest.update(stream.read(_BLOCK_BYTES))
