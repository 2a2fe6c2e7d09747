"""Copies in host memory of tensors that training goes on changing.

Fresh memory costs more than the copy (page faults; on an accelerator, pinning), so the copies are
kept from one save to the next.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.flat_shard import FlatShard


class Staging:
    """Host memory for one state, as large as this rank's shards of it."""

    def __init__(self, device: torch.device) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._stream = None if device.type == "cpu" else torch.Stream(device)

    def follow(self) -> None:
        """Let the copies that come next wait for all work that the calling thread has queued."""
        if self._stream is not None:
            self._stream.wait_stream(torch.accelerator.current_stream())

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return host copies of shards or plain tensors of any shape; the last ones are reused."""
        if self._stream is None:
            for name, tensor in tensors.items():
                _copy_bytes(_local(tensor), _local(self._buffer(name, tensor)))
        else:
            with self._stream:
                for name, tensor in tensors.items():
                    _local(self._buffer(name, tensor)).copy_(_local(tensor), non_blocking=True)
            self._stream.synchronize()
        return {name: self._buffers[name] for name in tensors}

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._buffers:
            pin = self._stream is not None
            buffer = torch.empty_like(
                tensor.to_local() if isinstance(tensor, FlatShard) else tensor,
                device="cpu",
                pin_memory=pin,
                requires_grad=False,
                memory_format=torch.contiguous_format,
            )
            self._buffers[name] = tensor.like(buffer) if isinstance(tensor, FlatShard) else buffer
        return self._buffers[name]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor | FlatShard) else tensor.detach()


def _copy_bytes(source: Tensor, target: Tensor) -> None:
    """Copy within host memory (any shape) on this thread alone.

    `Tensor.copy_` would start a second team of OpenMP threads, which waits in turn with the
    training's for the same cores: measured 20 times slower while they are busy.
    """
    to, of = (x.flatten().view(torch.uint8).numpy() for x in (target, source))
    np.copyto(to, of)
