"""Real training runs of a tiny model on generated text: as a user starts them, and in forks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.launched import untimed
from benchmarks.tiny_run import write_tiny_config
from configs.command import ROOT
from tests.ranks import run_ranks
from trainer.__main__ import main
from trainer.metrics import read_metrics

STEPS = 12


def write_config(folder: Path, **changes: object) -> Path:
    """Write a config whose run, data and text lie in the folder; return its path."""
    sections: dict[str, object] = {
        "steps": STEPS,
        "batch": {"global_size": 16, "micro_size": 4},
        "optim": {"lr": 1e-2},
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "validate": {"every": 4, "sequences": 10},  # two and a half microbatches
        "checkpoint": {"every": 3, "keep_last": 2},
    }
    return write_tiny_config(folder, folder, **{**sections, **changes})


def train(arguments: list[str], ranks: int = 2) -> None:
    """Run the trainer's main on forked ranks that share a group."""
    run_ranks(main, arguments, world=ranks)


def torchrun(
    arguments: list[str],
    ranks: int = 2,
    environment: dict[str, str] | None = None,
    restarts: int = 0,
) -> "subprocess.Popen[str]":
    """Start the trainer as a user does, in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    command += ["-m", "trainer", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill the launcher and its workers, which torchrun puts into sessions of their own."""
    for pid in (*children(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def curve(run: Path) -> list[dict[str, object]]:
    """Return what every line of the run's metrics says that does not depend on time."""
    return untimed(read_metrics(run / "metrics.jsonl"))


def wait_for_step(run: Path, step: int, seconds: float = 90) -> None:
    """Return when the run has written the metrics of a step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").is_file() and any(
            line["kind"] == "train" and line["step"] >= step for line in curve(run)
        ):
            return
        time.sleep(0.005)
    raise AssertionError(f"no step {step} within {seconds} seconds")
