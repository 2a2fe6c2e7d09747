"""Jobs on a test cluster: submitted as a user submits them, and watched with deadlines."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.command import ROOT
from slurm.prepare import PACKAGES
from tests.e2e.runs import curve, write_config
from tests.slurm.cluster import Cluster, wait_until

STEPS, EVERY = 60, 10
"""Of a run, and between its checkpoints."""
LONG = 300.0
"""Seconds that a start of a job may take on a busy machine."""
ENVIRONMENT = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "RANKS_PER_NODE": "1"}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def run_config(folder: Path, **changes: object) -> Path:
    """Write the config of a run whose steps take long enough for something to happen to it."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = {
        "steps": STEPS,
        "batch": {"global_size": 64, "micro_size": 4},
        "validate": {"every": 30, "sequences": 12},
        "checkpoint": {"every": EVERY, "keep_last": 2},
        "parallel": {"timeout_seconds": 300, "long_timeout_seconds": 300},
        **changes,
    }
    return write_config(folder, **changes)


def checkout(folder: Path) -> Path:
    """Copy what a job needs of the repository, so that a test may change it."""
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    cluster: Cluster
    number: str
    run: Path
    output: Path

    @property
    def state(self) -> str:
        return self.cluster.job(self.number)["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.cluster.job(self.number)["Restarts"])

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.is_file() else ""

    def wait(self, seconds: float = LONG) -> str:
        """Return the state in which the job has ended."""
        try:
            wait_until(lambda: self.state in ENDED, seconds, f"job {self.number} ended")
        except TimeoutError as error:
            raise AssertionError(f"{error}; it is {self.state} and said:\n{self.said}") from None
        return self.state

    def wait_for_step(self, step: int, seconds: float = LONG) -> None:
        """Return when the run has written the metrics of a step."""
        try:
            wait_until(lambda: last_step(self.run) >= step, seconds, f"step {step}")
        except TimeoutError as error:
            raise AssertionError(f"{error}; {self.state}, it said:\n{self.said}") from None

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank that runs, by rank."""
        found = {}
        for pid in self.cluster.processes():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"trainer" in words and b"torch.distributed.run" not in words and b"-m" in words:
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
                found[int(dict(w.split("=", 1) for w in environment if "=" in w)["RANK"])] = pid
        return found

    def signal_ranks(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to some ranks, or all of them."""
        for rank, pid in self.ranks().items():
            if rank in ranks or not ranks:
                os.kill(pid, number)


def submit(
    cluster: Cluster,
    script: str,
    *arguments: str,
    cwd: Path,
    run: Path,
    options: tuple[str, ...] = ("--nodes", "2"),
    settings: dict[str, str] | None = None,
) -> Job:
    """Submit a script of the checkout at `cwd`, as a user does."""
    number = cluster.run(
        *("sbatch", "--parsable", *options, f"slurm/{script}.sh", *arguments),
        cwd=cwd,
        **ENVIRONMENT,
        **(settings or {}),
    ).strip()
    return Job(cluster, number, run, cwd / f"{script}-{number}.out")


def last_step(run: Path) -> int:
    """Return the last step that the run has written metrics of."""
    if not (run / "metrics.jsonl").is_file():
        return 0
    try:
        return max((int(str(x["step"])) for x in curve(run) if x["kind"] == "train"), default=0)
    except (json.JSONDecodeError, ValueError):
        return 0


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    pointer = run / "checkpoints" / "latest"
    return int(pointer.read_text().strip().removeprefix("step_")) if pointer.is_file() else 0


@contextmanager
def outage(job: Job, fault: str, lost: range) -> Iterator[None]:
    """Wait, after the block's fault, for the next new step; print how long that took.

    Args:
        job: at work.
        fault: what to call it in the table.
        lost: how many steps may have to be done again.
    """
    starts, began = job.said.count("== rank 0"), time.monotonic()
    yield
    wait_until(lambda: job.said.count("== rank 0") > starts, LONG, f"a new start\n{job.said}")
    reached, resumed = last_step(job.run), newest_step(job.run)
    wait_until(lambda: resumed < last_step(job.run) != reached, LONG, f"a new step\n{job.said}")
    took = time.monotonic() - began
    print(f"| {fault} | {reached - resumed} | {took:.0f} |")
    assert reached - resumed in lost
