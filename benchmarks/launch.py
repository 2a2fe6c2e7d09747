"""Run a function on several local ranks from a benchmark script."""

import os
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def on_ranks(
    size: int, fn: Callable[..., Any], *args: Any, threads: int | None = None
) -> list[Any]:
    """Return what fn(*args) returns on each of `size` fresh processes, started as torchrun does.

    Args:
        size: number of ranks.
        fn: a function of an importable module; joins its group with `parallel.world.start`.
        args: its arguments, pickled between our own processes.
        threads: of each rank; None shares the processor's cores out equally.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    if threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // size)
    results = elastic_launch(config, _with_threads)(threads, fn, args)
    return [results[rank] for rank in range(size)]


def _with_threads(threads: int, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    torch.set_num_threads(threads)
    return fn(*args)
