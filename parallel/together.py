"""What all ranks do or none: jobs that may fail on one of them, and values that must be equal."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


class RankFailedError(RuntimeError):
    """A job failed on some rank; all ranks raise the same."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code
        """The error number of the system, if the failure was an OSError's."""


def together(job: Callable[[], T], what: str, *, group: dist.ProcessGroup | None = None) -> T:
    """Run a job on every rank and return its result here; if one rank fails, all do.

    Nobody waits for a rank that has given up.

    Args:
        job: has no collectives that a failure would leave out on some ranks.
        what: the job, as the subject of "... failed on rank 1: ...".
        group: carries the reports; all ranks unless given.

    Raises:
        RankFailedError: on every rank, naming the first that failed and why.
    """
    outcome: T | BaseException
    try:
        outcome = job()
    except BaseException as error:
        outcome = error
    for rank, report in enumerate(all_ranks(_report(outcome), group=group)):
        if report is not None:
            raise RankFailedError(f"{what} failed on rank {rank}: {report[0]}", report[1])
    return cast(T, outcome)


def _report(outcome: object) -> tuple[str, int | None] | None:
    if not isinstance(outcome, BaseException):
        return None
    code = outcome.errno if isinstance(outcome, OSError) else None
    return f"{type(outcome).__name__}: {outcome}", code


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

    It travels pickled, within our own process group; alone, with or without one, there is one.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value, group=group)
    return everyone


def gather_to_first(values: Sequence[T]) -> list[list[T]]:
    """Return every rank's values (plain data) by rank on rank 0, and nothing on the others.

    They travel pickled, within our own process group.
    """
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(list(values), gathered)
    return gathered or []
