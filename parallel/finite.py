"""Whether the numbers that a rank holds are finite."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.flat_shard import FlatShard


def is_broken(tensor: Tensor) -> bool:
    """Whether a tensor (any shape), or this rank's shard of it, has a number that is not finite."""
    local = tensor.to_local() if isinstance(tensor, DTensor | FlatShard) else tensor
    return not bool(torch.isfinite(local.detach()).all())
