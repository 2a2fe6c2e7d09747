"""The processes of a run: who am I, how many are we, on which device."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TextIO, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.rendezvous import rendezvous

from parallel.host_memory import keep_host_memory
from parallel.meeting import meet


@dataclass(frozen=True, slots=True)
class World:
    """One process's place among all of them."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0


def start(*, device: Literal["auto", "cpu"] = "auto", timeout_seconds: float = 600.0) -> World:
    """Join the process group that torchrun's environment describes; without torchrun, be alone.

    CPU tensors travel over gloo, also beside an accelerator, whose tensors use its own backend.

    Raises:
        RuntimeError: if a peer does not answer within the timeout.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = _device(device, local_rank)
    backend = "gloo"
    if place.type == "cpu":
        keep_host_memory()
    else:
        torch.accelerator.set_device_index(place)
        backend = f"cpu:gloo,{place.type}:{dist.get_default_backend_for_device(place)}"
    if not dist.is_initialized():
        timeout = timedelta(seconds=timeout_seconds)
        if _has_torchrun():
            store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
            own = meet(store, rank, size, timeout_seconds)
            dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=timeout)
        else:
            dist.init_process_group(
                backend, store=HashStore(), rank=0, world_size=1, timeout=timeout
            )
    return World(dist.get_rank(), dist.get_world_size(), local_rank, place)


def _device(wanted: str, local_rank: int) -> torch.device:
    accelerator = None if wanted == "cpu" else torch.accelerator.current_accelerator()
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, local_rank)


@contextmanager
def joined(device: Literal["auto", "cpu"] = "auto") -> Iterator[World | None]:
    """Join torchrun's group for one command and leave it afterwards; None without torchrun.

    After an error the group is left as it is: a barrier would wait for ranks that have none.
    """
    if not dist.is_initialized() and not _has_torchrun():
        yield None
        return
    yield start(device=device)
    stop()


class _Silence(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def on_first(world: World | None, stream: TextIO) -> TextIO:
    """Return the stream if this rank is to speak, else one that swallows everything."""
    return stream if world is None or world.is_first else cast(TextIO, _Silence())


def _has_torchrun() -> bool:
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def stop() -> None:
    """Wait for all ranks, then leave the group: else a finished run may be called failed."""
    dist.barrier()
    dist.destroy_process_group()
