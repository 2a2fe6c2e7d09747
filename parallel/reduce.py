"""Small reductions and exchanges over all ranks; with one process they change nothing."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum of every rank's `values` (any shape), on their device."""
    total = values.clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on at least one rank; the same answer on all."""
    value = torch.tensor(int(flag))
    if dist.get_world_size() > 1:
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def from_first_rank(value: T) -> T:
    """Return rank 0's value (anything that pickles; it comes from our own process group)."""
    box: list[Any] = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    result: T = box[0]
    return result


def wait_for_all() -> None:
    """Return when every rank has come here."""
    dist.barrier()
