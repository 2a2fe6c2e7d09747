"""What a checkpoint of any kind holds: tensors that are read one by one, and what stands beside."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from models.weight_files import StoredTensor
from parallel.convert.beside import Beside

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state of every parameter, beside its step."""

WRAPPER = "module."


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A checkpoint, nothing of whose tensors has been read."""

    origin: Path
    """Where it is, for messages."""
    step: int
    """Finished optimiser steps."""
    weights: Mapping[str, StoredTensor]
    """Parameters by upstream name: masters where there are any."""
    optimizer: Mapping[str, StoredTensor]
    """`exp_avg.NAME`, `exp_avg_sq.NAME` and `step.NAME` of every parameter, or nothing."""
    beside: Beside
    prefix: str = ""
    """What DeepSpeed's files have before each upstream name, which it expects there again."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """What DeepSpeed stores beside tensors: client state, scheduler, parameter groups."""


def prefix_of(names: Iterable[str]) -> str:
    """Return what a module of the user's around the model put before all names, if it did."""
    return WRAPPER if all(name.startswith(WRAPPER) for name in names) else ""


def read_master(stored: StoredTensor) -> Tensor:
    """Read a tensor (any shape) in the precision of master weights, without rounding it."""
    tensor = stored.read()
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def counter(step: float) -> StoredTensor:
    """Return Adam's step of one parameter as it is stored, a scalar in float32."""
    return StoredTensor((), lambda: torch.tensor(float(step)))


def progress(names: Iterable[str], what: str) -> Iterator[str]:
    """Pass names on under a progress bar, if there is a terminal to show it on."""
    yield from tqdm(list(names), desc=what, unit=" tensors", disable=None)
