"""Two ranks of the trainer as forks of this process, which a script may kill as it likes.

torchrun would take its 5 seconds to import torch at each start.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from trainer.__main__ import main as train

RANKS = 2


def fork(arguments: list[str], *, log: Path) -> list[int]:
    """Start the trainer on two ranks; return their process ids.

    Args:
        arguments: of the trainer's command.
        log: both ranks' output goes there.
    """
    store = tempfile.mktemp(prefix="store-", dir=log.parent)
    sys.stdout.flush()
    return [_fork(rank, arguments, log, store) for rank in range(RANKS)]


def _fork(rank: int, arguments: list[str], log: Path, store: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _rank(rank, arguments, log, store)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _rank(rank: int, arguments: list[str], log: Path, store: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    dist.init_process_group(
        "gloo",
        store=FileStore(store, RANKS),
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    train(arguments)


def is_running(pids: Sequence[int]) -> bool:
    """Whether all ranks are still there; takes no note of those that are not."""
    states = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] for pid in pids]
    return "Z" not in states


def kill(pids: Sequence[int]) -> None:
    """End all ranks at once, wherever they are, and reap them."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def end(pids: Sequence[int], seconds: float) -> None:
    """Ask all ranks to save and stop, and wait for them.

    Raises:
        RuntimeError: if one fails, or takes longer than so many seconds.
    """
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    left, deadline = list(pids), time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        pid, status = os.waitpid(left[0], os.WNOHANG)
        if pid and status:
            raise RuntimeError(f"a rank that was asked to stop ended with status {status}")
        left = left[1:] if pid else left
        time.sleep(0.01)
    if left:
        kill(left)
        raise RuntimeError(f"a rank that was asked to stop did not within {seconds:g} s")
