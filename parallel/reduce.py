"""Small reductions and exchanges over all ranks; with one process they change nothing."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from models.ranges import named

T = TypeVar("T")


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum of every rank's `values` (any shape), on their device."""
    total = values.clone()
    if dist.get_world_size() > 1:
        with named("reduction"):
            dist.all_reduce(total)
    return total


def max_over_ranks(values: Sequence[int]) -> list[int]:
    """Return the elementwise maximum of every rank's whole numbers, equally many on each."""
    most = torch.tensor(list(values))
    with named("reduction"):
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return most.tolist()


def on_first_rank(job: Callable[[], T]) -> T:
    """Run a job on rank 0 while the others wait, a day if need be; return its result on all.

    The result travels pickled, within our own process group.

    Raises:
        RuntimeError: on the other ranks, if the job failed on rank 0 (where its own error rises).
    """
    if dist.get_world_size() == 1:
        return job()
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    box: list[Any] = [None, None]
    failure: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            box[0] = job()
        except Exception as error:
            failure, box[1] = error, str(error)
    dist.broadcast_object_list(box, src=0, group=patient, device=torch.device("cpu"))
    dist.destroy_process_group(patient)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise RuntimeError(f"stopped because rank 0 failed: {box[1]}")
    result: T = box[0]
    return result
