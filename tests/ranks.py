"""Real process groups in tests: `run_ranks(fn, *args, world=2)`."""

import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

GRACE_SECONDS = 2.0
"""How long the other ranks live on after one has failed."""


class RankError(AssertionError):
    """The tracebacks of all ranks that failed, the earliest first."""


def run_ranks(
    fn: Callable[..., Any], *args: Any, world: int = 2, timeout: float = 120.0, group: bool = True
) -> list[Any]:
    """Run fn(*args) in `world` forked processes that share a gloo group; return each rank's result.

    Inside, `torch.distributed` is initialised (unless group=False) with a file store, so that no
    port is raced for. When a rank raises, the others are killed shortly after; a hang is ended
    after `timeout` seconds. All tracebacks, and the stacks of who was killed, are raised here, the
    earliest first.
    """
    with tempfile.TemporaryDirectory() as folder:
        pids = [_fork(rank, world, folder, fn, args, group) for rank in range(world)]
        _wait(dict(enumerate(pids)), timeout, Path(folder))
        failures = sorted(Path(folder).glob("failed_*"), key=lambda p: p.stat().st_mtime_ns)
        if failures:
            raise RankError("\n".join(f"[{file.name}]\n{file.read_text()}" for file in failures))
        return [
            torch.load(Path(folder) / f"result_{rank}", weights_only=True) for rank in range(world)
        ]


def _fork(
    rank: int, world: int, folder: str, fn: Callable[..., Any], args: tuple[Any, ...], group: bool
) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _rank(rank, world, folder, fn, args, group)
        code = 0
    except BaseException:
        (Path(folder) / f"failed_{rank}").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(code)


def _rank(
    rank: int, world: int, folder: str, fn: Callable[..., Any], args: tuple[Any, ...], group: bool
) -> None:
    torch.set_num_threads(1)
    stacks = (Path(folder) / f"stacks_{rank}").open("w")
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    if group:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(f"{folder}/store", world),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=30),
        )
    torch.save(fn(*args), Path(folder) / f"result_{rank}")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _wait(pids: dict[int, int], timeout: float, folder: Path) -> None:
    """Reap every rank; after the first failure or at the deadline, kill what is left."""
    deadline = time.monotonic() + timeout
    while pids:
        for rank, pid in list(pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del pids[rank]
            if status:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                failed = folder / f"failed_{rank}"
                if not failed.exists():
                    failed.write_text(f"ended with wait status {status} and left no traceback")
        if pids and time.monotonic() > deadline:
            for rank, pid in pids.items():
                (folder / f"failed_{rank}_killed").write_text(_kill(pid, folder / f"stacks_{rank}"))
            return
        time.sleep(0.01)


def _kill(pid: int, stacks: Path) -> str:
    """End a rank that is still running; say where it was, if it can still tell."""
    os.kill(pid, signal.SIGUSR2)
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    where = stacks.read_text() if stacks.exists() else ""
    return f"killed: still running\n{where}"
