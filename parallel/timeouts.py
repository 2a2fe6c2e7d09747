"""How long collectives wait for a missing rank: changed while a run goes on, told when it is over.

torch 2.13 gives a group that is made without a timeout, such as those of a device mesh, its own
default (30 minutes for gloo, 10 for NCCL), whatever the first group was given.
"""

from collections.abc import Iterable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout, _world

Group = dist.ProcessGroup
"""Ranks that have collectives with one another."""
BACKSTOP_SECONDS = 15.0
"""Added to what is asked for: whoever watches the step reports first, and knows more."""


def open_groups() -> tuple[Group, ...]:
    """Return all process groups that this rank belongs to at the moment."""
    return tuple(_world.pg_map)


def set_timeout(groups: Iterable[Group], seconds: float) -> None:
    """Let collectives of these groups that begin from now on give up after so many seconds."""
    for group in groups:
        _set_pg_timeout(timedelta(seconds=seconds + BACKSTOP_SECONDS), group)


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error is a collective's that has waited in vain, or whose peer is gone.

    gloo has no error class of its own, but its messages begin with where in its source they arose.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )
