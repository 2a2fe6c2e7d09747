"""Train all runs, so many at a time; what is finished is not done again."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from tqdm import tqdm

from benchmarks.launched import last_step
from benchmarks.reproduce.arms import Job
from configs.command import ROOT
from configs.load import load
from parallel.checkpoint import read_state
from parallel.publish import latest
from trainer.config import PretrainConfig
from trainer.metrics import FILE_NAME
from trainer.run_folder import CONFIG, checkpoints_folder

LOG = "log.txt"
_SECONDS_BETWEEN_LOOKS = 1.0


def train_all(jobs: Sequence[Job], *, at_once: int) -> None:
    """Run every training to its end, one thread each, going on with what was interrupted.

    Raises:
        ValueError: if one was begun with another config.
        RuntimeError: if one fails; the others that run are ended, and save.
    """
    for job in jobs:
        check_same(job.config)
    waiting = [job for job in jobs if finished_steps(job.config) < job.config.steps]
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    total = sum(job.config.steps for job in jobs)
    with tqdm(total=total, unit="step", desc="training", dynamic_ncols=True) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append((waiting[0], start(waiting.pop(0))))
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                for job, process in running:
                    _check(job, process)
                running = [(job, each) for job, each in running if each.poll() is None]
                bar.n = sum(last_step(job.folder / FILE_NAME) for job in jobs)
                bar.refresh()
        finally:
            for _, process in running:
                process.terminate()
            for _, process in running:
                process.wait()


def start(job: Job) -> subprocess.Popen[bytes]:
    """Start the trainer on a run; what it prints goes to `log.txt` beside the run's metrics."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", job.path, *job.overrides],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _check(job: Job, process: subprocess.Popen[bytes]) -> None:
    if process.poll() not in (None, 0):
        lines = (job.folder / LOG).read_text(errors="replace").splitlines()
        said = next((line for line in reversed(lines) if "error: " in line), "it said nothing")
        raise RuntimeError(f"{job.folder} stopped ({said}): see {job.folder / LOG}, and try again")
    if process.poll() == 0 and finished_steps(job.config) < job.config.steps:
        raise RuntimeError(f"{job.folder} was ended before its last step: run it again to go on")


def check_same(config: PretrainConfig) -> None:
    """Refuse to go on with another experiment's run, whose figures would pass for this one's.

    Raises:
        ValueError: naming the first section that differs.
    """
    path = Path(config.run_folder) / CONFIG
    if not path.is_file():
        return
    before = load(PretrainConfig, path)
    for field in fields(config):
        if field.name != "run_folder" and getattr(before, field.name) != getattr(
            config, field.name
        ):
            raise ValueError(
                f"{field.name} differs from {path}: give this experiment another folder=, or "
                "remove that run"
            )


def finished_steps(config: PretrainConfig) -> int:
    """Return the step of a run's newest checkpoint; 0 without one."""
    newest: Path | None = latest(checkpoints_folder(config))
    return 0 if newest is None else int(read_state(newest)["step"])
