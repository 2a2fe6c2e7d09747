"""A safetensors file written with its checksum: what was in memory, not what a disk made of it.

`safetensors.torch.save_file` gives no checksum, and one taken from the file afterwards would call
right whatever the disk holds. The format is short enough to write: the length of a header, the
header as JSON, the bytes of the tensors (github.com/huggingface/safetensors).
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from parallel.checksum import CHUNK_BYTES, Written

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}
"""What the format calls those that weights and the optimizer's state have."""


def write_tensor_file(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Written:
    """Write tensors of any shape to a new file, and return when it is on the disk.

    Args:
        path: an old file there is replaced.
        tensors: on any device; moved to the host one at a time.
        metadata: goes into the header.

    Raises:
        OSError: if it cannot be written.
    """
    state, size = xxhash.xxh3_128(), 0
    with path.open("wb", buffering=2**20) as file:
        for chunk in _contents(tensors, metadata):
            state.update(chunk)
            file.write(chunk)
            size += chunk.nbytes
        file.flush()
        os.fsync(file.fileno())
    return Written(size, state.hexdigest())


def tensor_file_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Return the size that the file of these tensors (any shape) will have."""
    return len(_header(tensors, metadata)) + sum(tensor.nbytes for tensor in tensors.values())


def _contents(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    yield memoryview(_header(tensors, metadata))
    for name in _order(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        whole = flat.view(torch.uint8).numpy().data
        for begin in range(0, len(whole), CHUNK_BYTES):
            yield whole[begin : begin + CHUNK_BYTES]


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names, those of the largest elements first, so that all of them are aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    for name in _order(tensors):
        tensor = tensors[name]
        described[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes],
        }
        begin += tensor.nbytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
