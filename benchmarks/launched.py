"""A training run as a user starts it, torchrun and its ranks, watched from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.command import ROOT
from trainer.metrics import FILE_NAME

TIMED = frozenset({"step_seconds", "tokens_per_second", "memory_bytes", "seconds", "mfu"})
"""Fields of the metrics that no two runs share."""
_RESUMED = re.compile(r"going on after step (\d+)")
_TAIL_BYTES = 16384


class Launched:
    """torchrun on this machine, and what its run has written so far."""

    def __init__(
        self, run_folder: Path, arguments: Sequence[str], *, ranks: int, restarts: int, log: Path
    ) -> None:
        """Start it.

        Args:
            run_folder: where the run writes; may hold an interrupted one.
            arguments: of the trainer.
            ranks: how many processes.
            restarts: how often torchrun starts all ranks again after one has failed.
            log: what the launcher and all ranks print is appended to it.
        """
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
        self.metrics = run_folder / FILE_NAME
        self._log, self._log_from = log, log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, "-m", "trainer", *arguments],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def ranks(self) -> list[int]:
        """Return the process ids of the living ranks, in the order of ranks."""
        launcher = self.process.pid
        try:
            text = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
        except FileNotFoundError:
            return []
        found = [(_rank(int(pid)), int(pid)) for pid in text.split()]
        return [pid for rank, pid in sorted(p for p in found if p[0] is not None)]

    def kill(self, pids: Sequence[int] | None = None) -> None:
        """SIGKILL to the given processes; to the launcher and all ranks if none are given."""
        for pid in pids if pids is not None else [self.process.pid, *self.ranks()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def resumed_from(self) -> list[int]:
        """Return the steps that its processes went on after, one for each start, oldest first."""
        with self._log.open("rb") as file:
            file.seek(self._log_from)
            text = file.read().decode(errors="replace")
        return [int(step) for step in _RESUMED.findall(text)]

    def wait(self, seconds: float) -> int:
        """Return the launcher's exit code.

        Raises:
            RuntimeError: if it does not end in time.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the launcher did not end within {seconds:g} s") from None


def _rank(pid: int) -> int | None:
    """Return the rank of a process of ours, None for one that is gone or has none."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    ranks = [int(v.removeprefix(b"RANK=")) for v in variables if v.startswith(b"RANK=")]
    return ranks[0] if ranks else None


def last_step(metrics: Path) -> int:
    """Return the last training step that is recorded; 0 before the first."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        if line.startswith(b'{"kind": "train", "step": '):
            step = json.loads(line)["step"]
            assert isinstance(step, int)
            return step
    return 0


def untimed(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics without what depends on time."""
    return [{k: v for k, v in line.items() if k not in TIMED} for line in lines]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Look every 20 ms until the condition holds.

    Raises:
        RuntimeError: naming what did not happen.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.02)
