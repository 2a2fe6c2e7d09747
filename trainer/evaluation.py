"""The process that evaluates a run's checkpoints: rank 0 starts it, and it can harm nothing.

It is the command `follow` of inference, told what the section `evaluate` says. It reads what the
run saves and writes files of its own; if it fails, a line says so and training goes on.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from configs.command import ROOT
from parallel.evaluated import outstanding
from trainer.config import PretrainConfig
from trainer.evaluate_config import EvaluateConfig
from trainer.signals import StopRequest

LOG_NAME = "evaluations.log"
PASSED_ON = (
    "every",
    "exits",
    "prompts",
    "num_samples",
    "max_new_tokens",
    "num_speculations",
    "tasks",
    "task_folder",
    "limit",
    "dtype",
    "device",
)
"""Keys that follow has, too."""
OF_RANKS = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""Environment variables that begin so make a process a rank of torchrun."""
ASKED_TO_END = (-signal.SIGTERM, -signal.SIGUSR1)
"""How it ends where a launcher or scheduler signals all processes of a run that is to stop."""
_END_SECONDS = 5.0

Finish = Callable[[StopRequest], None]

logger = logging.getLogger(__name__)


def follow_arguments(config: EvaluateConfig, *, until: int) -> list[str]:
    """Return the section as keys of `python -m inference follow`."""
    values = {name: getattr(config, name) for name in PASSED_ON}
    words = {name: value for name, value in values.items() if value is not None}
    words |= {"exits": json.dumps(config.exits), "until": until}
    return [f"{name}={value}" for name, value in words.items()]


def spared_steps(config: PretrainConfig, steps: Sequence[int]) -> list[int]:
    """Return which of these old checkpoints are to stay, because they wait for their evaluation.

    At most `evaluate.keep`, the newest: an evaluation that falls behind must not fill the disk.
    """
    if config.evaluate is None or not config.evaluate.keep:
        return []
    folder = Path(config.run_folder)
    try:
        waiting = outstanding(folder, steps, every=config.evaluate.every, last=config.steps)
    except OSError as error:
        logger.warning("no checkpoint is kept for its evaluation: %s", error)
        return []
    return waiting[-config.evaluate.keep :]


class _Evaluation:
    """The process, watched by a thread that says how it ended."""

    def __init__(self, config: EvaluateConfig, run_folder: Path, *, until: int) -> None:
        self.log = run_folder / LOG_NAME
        command = [sys.executable, "-m", "inference", "follow", str(run_folder)]
        command += [*follow_arguments(config, until=until), f"parent={os.getpid()}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=_environment(config.threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._is_ended = False
        self._watcher = threading.Thread(target=self._watch, name="evaluation", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        code = self._process.wait()
        if code and code not in ASKED_TO_END and not self._is_ended:
            logger.warning(
                "the evaluation of checkpoints ended with code %d: %s; training goes on without "
                "it, see %s",
                code,
                _last_line(self.log),
                self.log,
            )

    def finish(self, stop: StopRequest) -> None:
        """Wait until the last checkpoint is evaluated, or a signal asks to stop."""
        if self._process.poll() is None:
            logger.info("the run is over; its last checkpoints are being evaluated: %s", self.log)
        stop.consequence = "the evaluation ends; a new start of the run does the rest"
        while self._watcher.is_alive() and not stop.is_set:
            time.sleep(0.1)

    def end(self) -> None:
        """End the process, if it has not ended by itself."""
        self._is_ended = True
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._watcher.join()


@contextmanager
def evaluating(config: PretrainConfig, *, is_first: bool) -> Iterator[Finish]:
    """Have the checkpoints of a run evaluated, by rank 0, while the context is open.

    Yields:
        What waits for the evaluations that are outstanding, to be called when all ranks are done.
    """
    if config.evaluate is None or not is_first:
        yield _nothing_to_finish
        return
    try:
        evaluation = _Evaluation(config.evaluate, Path(config.run_folder), until=config.steps)
    except OSError as error:
        logger.warning("no checkpoint is evaluated: %s; training goes on without it", error)
        yield _nothing_to_finish
        return
    try:
        yield evaluation.finish
    finally:
        evaluation.end()


def _nothing_to_finish(stop: StopRequest) -> None:
    """Wait for nothing."""


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that is no rank, and finds our packages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_RANKS)}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
