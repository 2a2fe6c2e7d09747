"""One answer for all ranks that share one model: rank 0's."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.tensor import TensorLlama

Number = TypeVar("Number", int, float)


def share(model: nn.Module, values: Tensor) -> Tensor:
    """Return rank 0's values (any shape), if the ranks share this model; else the values."""
    if not isinstance(model, TensorLlama):
        return values
    values = values.clone()
    dist.broadcast(values, 0)
    return values


def share_numbers(model: nn.Module, numbers: Sequence[Number]) -> list[Number]:
    """Return rank 0's numbers, if the ranks share this model; else the numbers.

    For what a host decides and all must do: timings, draft lengths, tokens. Every rank passes
    equally many of the same kinds; whole ones up to 2^53 arrive exactly.
    """
    if not isinstance(model, TensorLlama):
        return list(numbers)
    kinds = [type(number) for number in numbers]
    shared = share(model, torch.tensor(numbers, dtype=torch.float64)).tolist()
    return [kind(number) for kind, number in zip(kinds, shared, strict=True)]
