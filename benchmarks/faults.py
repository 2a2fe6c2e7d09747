"""Disasters of a training run, each done to real processes and files; for `benchmarks.soak`."""

import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from benchmarks.launched import Launched
from parallel.publish import latest

Fault = Callable[[Launched, Path, random.Random], str]
"""Does it to a run, given the folder of its checkpoints; returns what it was, for the log."""

QUOTA_BYTES = 4096
"""Larger files than this cannot be written by the rank whose quota is spent."""


def kill_rank(run: Launched, checkpoints: Path, draw: random.Random) -> str:
    """SIGKILL to one rank, as the system does when memory is out."""
    ranks = run.ranks()
    rank = draw.randrange(len(ranks))
    run.kill([ranks[rank]])
    return f"rank {rank} killed"


def kill_all(run: Launched, checkpoints: Path, draw: random.Random) -> str:
    """SIGKILL to the launcher and all ranks, as when the power fails."""
    run.kill()
    return "all killed"


def terminate(run: Launched, checkpoints: Path, draw: random.Random) -> str:
    """SIGTERM to the launcher, as a scheduler sends ahead of preemption."""
    run.process.send_signal(signal.SIGTERM)
    return "terminated"


def hang_rank(run: Launched, checkpoints: Path, draw: random.Random) -> str:
    """SIGSTOP to one rank: it keeps its connections, but answers no more."""
    ranks = run.ranks()
    rank = draw.randrange(len(ranks))
    os.kill(ranks[rank], signal.SIGSTOP)
    return f"rank {rank} stopped"


def corrupt_newest(run: Launched, checkpoints: Path, draw: random.Random) -> str:
    """Flip one bit of the newest checkpoint, then kill all, so that it is what a resume finds."""
    run.kill()
    run.wait(30)
    newest = latest(checkpoints)
    assert newest is not None, "faults begin after the first checkpoint"
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"a bit of {path.relative_to(checkpoints)} flipped at byte {place}, all killed"


def spend_quota(run: Launched, checkpoints: Path, draw: random.Random) -> str:
    """Let one rank's files grow no more, as on a full disk; a process that is started anew may."""
    ranks = run.ranks()
    rank = draw.randrange(len(ranks))
    resource.prlimit(ranks[rank], resource.RLIMIT_FSIZE, (QUOTA_BYTES, QUOTA_BYTES))
    return f"quota of rank {rank} spent"


FAULTS: dict[str, Fault] = {
    "kill one rank": kill_rank,
    "kill launcher and ranks": kill_all,
    "SIGTERM": terminate,
    "stop one rank (SIGSTOP)": hang_rank,
    "flip a bit of the newest checkpoint": corrupt_newest,
    "spend a rank's disk quota": spend_quota,
}
