"""A store of its own for every start of a run's ranks.

torchrun starts ranks again in place after one has failed, and gives them the store that those
before them used. In it a rank finds where its peers listened before as well as where they listen
now, and whoever is early connects to the dead (pytorch/pytorch#135712). So all ranks of a start
agree on a prefix first. The count of restarts in torchrun's environment would not do: each node
counts for itself.
"""

import time
from datetime import timedelta
from uuid import uuid4

from torch._C._distributed_c10d import PrefixStore, Store

_PAUSE_SECONDS = 0.01


def meet(store: Store, rank: int, size: int, timeout_seconds: float) -> Store:
    """Return the part of a store that belongs to this start; every rank of it calls this once.

    Each rank says under a name of its own that it is here, rank 0 answers everyone with the prefix,
    and each confirms. What dead ranks left behind is answered too, but never confirmed.

    Args:
        store: shared by all ranks, and perhaps by those of earlier starts, now dead.
        rank: of this process.
        size: number of ranks.
        timeout_seconds: how long to wait for the others.

    Raises:
        RuntimeError: naming the ranks that did not come.
    """
    name = uuid4().hex
    if rank == 0:
        _gather(store, name, set(range(1, size)), timeout_seconds)
        return PrefixStore(name, store)
    store.set(f"meeting/rank/{rank}", name)
    try:
        store.wait([f"meeting/answer/{name}"], timedelta(seconds=timeout_seconds))
    except RuntimeError as error:
        raise RuntimeError(
            f"rank 0 did not come within {timeout_seconds:g} s of the start: {error}"
        ) from error
    prefix = store.get(f"meeting/answer/{name}").decode()
    store.set(f"meeting/confirmed/{name}", prefix)
    return PrefixStore(prefix, store)


def _gather(store: Store, prefix: str, missing: set[int], timeout_seconds: float) -> None:
    """Give all other ranks the prefix, and wait until they have it."""
    deadline = time.monotonic() + timeout_seconds
    answered: dict[int, str] = {}
    while missing:
        for rank in sorted(missing):
            if not store.check([f"meeting/rank/{rank}"]):
                continue
            name = store.get(f"meeting/rank/{rank}").decode()
            if answered.get(rank) != name:
                store.set(f"meeting/answer/{name}", prefix)
                answered[rank] = name
            elif _confirmed(store, name) == prefix:
                missing.discard(rank)
        if missing and time.monotonic() > deadline:
            raise RuntimeError(
                f"ranks {sorted(missing)} did not come within {timeout_seconds:g} s of the start: "
                "look at what they printed, and whether they reach this node"
            )
        time.sleep(_PAUSE_SECONDS)


def _confirmed(store: Store, name: str) -> str | None:
    key = f"meeting/confirmed/{name}"
    return store.get(key).decode() if store.check([key]) else None
