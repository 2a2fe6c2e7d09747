"""What weights are known by, without reading all of them: whether a base model is still the same.

Independent of how a folder cuts them into files, so that a model may be stored anew.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from models.weight_files import StoredTensor

ROWS, SMALL = 4, 1 << 16
"""Of a tensor so many parts of its rows are read; one with fewer numbers than that, whole."""


def fingerprint(stored: Mapping[str, StoredTensor]) -> str:
    """Return a digest of names, shapes, types and some rows of every tensor, 16 characters.

    Training moves all rows that are read by something, and copying or storing anew none.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(stored):
        parts = [_bytes(part) for part in _some(stored[name])]
        digest.update(f"{name} {stored[name].shape}\n".encode())
        for part in parts:
            digest.update(part)
    return digest.hexdigest()


def _some(tensor: StoredTensor) -> list[Tensor]:
    """Return a small tensor (any shape), or parts of a large one, evenly spaced over its rows."""
    count = torch.Size(tensor.shape).numel()
    if count <= SMALL:
        return [tensor.read()]
    rows = tensor.shape[0]
    rest = tuple(slice(0, side) for side in tensor.shape[1:])
    firsts = sorted({index * (rows - 1) // (ROWS - 1) for index in range(ROWS)})
    return [tensor.part((slice(first, first + 1), *rest)) for first in firsts]


def _bytes(tensor: Tensor) -> bytes:
    """Return the type and the bytes of a tensor (any shape)."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return f"{tensor.dtype} ".encode() + bytes(flat.numpy().tobytes())
