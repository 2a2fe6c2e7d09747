"""What all ranks do or none: jobs that may fail on one of them, and values that must be equal."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


def together(job: Callable[[], T], what: str, *, group: dist.ProcessGroup | None = None) -> T:
    """Run a job on every rank and return its result here; if one rank fails, all do.

    Nobody waits for a rank that has given up.

    Args:
        job: has no collectives that a failure would leave out on some ranks.
        what: the job, as the subject of "... failed on rank 1: ...".
        group: carries the reports; all ranks unless given.

    Raises:
        RuntimeError: on every rank, naming the first that failed and why.
    """
    outcome: T | BaseException
    try:
        outcome = job()
    except BaseException as error:
        outcome = error
    failed = isinstance(outcome, BaseException)
    mine = f"{type(outcome).__name__}: {outcome}" if failed else None
    for rank, report in enumerate(all_ranks(mine, group=group)):
        if report is not None:
            raise RuntimeError(f"{what} failed on rank {rank}: {report}")
    return cast(T, outcome)


def check_equal(value: object, what: str) -> None:
    """Refuse to go on with ranks that were told different things; one small collective.

    Args:
        value: plain data; its `repr` is compared.
        what: the subject of "... differ on rank 1".

    Raises:
        RuntimeError: on every rank, naming the first that differs from rank 0.
    """
    digests = all_ranks(hashlib.blake2b(repr(value).encode()).hexdigest())
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise RuntimeError(
                f"{what} differ on rank {rank} from those of rank 0: give every rank the same "
                "command and files"
            )


def all_ranks(value: T, *, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return every rank's value, in the order of ranks; for what is small and seldom.

    It travels pickled, within our own process group.
    """
    everyone: list[Any] = [None] * dist.get_world_size()
    if len(everyone) == 1:
        return [value]
    dist.all_gather_object(everyone, value, group=group)
    return everyone


def gather_to_first(values: Sequence[T]) -> list[list[T]]:
    """Return every rank's values (plain data) by rank on rank 0, and nothing on the others.

    They travel pickled, within our own process group.
    """
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(list(values), gathered)
    return gathered or []
