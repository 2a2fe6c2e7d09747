"""The command `follow`: evaluates the checkpoints of a run as they appear, until its last."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import load, load_part
from inference.evaluate.harness import find_tasks
from inference.follow.board import EvaluationBoard
from inference.follow.checkpoint import evaluate_checkpoint
from inference.follow.config import FollowConfig
from inference.follow.parent import work_for
from inference.load import Loaded
from inference.opening import Open
from inference.prompt_sets.prompt import Prompt
from inference.prompt_sets.read import read_prompt_set
from parallel.checkpoint import CHECKPOINTS, step_folder
from parallel.evaluated import EvaluationLog, evaluated_steps, outstanding
from parallel.publish import checkpoints_in, step_of

POLL_SECONDS = 1.0
"""Between looks at the folder of checkpoints."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What is asked of a run's config.yaml."""

    steps: int
    """Optimiser steps of the whole run."""


def run(model: str, overrides: Sequence[str], open_model: Open) -> None:
    """Follow the run that the command line names.

    Raises:
        ValueError: if a key, prompt or task does not fit, or there is no such run.
        RuntimeError: if another process follows it, or a checkpoint is damaged.
    """
    config, folder = load(FollowConfig, None, overrides), Path(model)
    until = config.until or _last_step(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder of a run")
    prompts = [] if config.prompts is None else read_prompt_set(config.prompts)
    manager = None if config.tasks is None else find_tasks(config.questions(None))
    if config.parent is not None:
        work_for(config.parent)
    with EvaluationLog(folder) as log:
        before = evaluated_steps(folder)
        with EvaluationBoard(folder / "tensorboard", after=max(before, default=0)) as board:
            while (step := _next(config, folder, until)) is not None:
                _evaluate(config, folder, step, prompts, manager, open_model, log, board)
    if evaluated_steps(folder) == before:
        logger.info("nothing was left to evaluate: see %s", log.path)
    _say_missed(config, folder, until)


def _last_step(folder: Path) -> int:
    file = folder / "config.yaml"
    if not file.is_file():
        raise ValueError(
            f"{folder} is not the folder of a run, for it has no config.yaml: name that folder, or "
            "say with until=STEP which is the last step"
        )
    return load_part(RunConfig, file).steps


def _next(config: FollowConfig, folder: Path, until: int) -> int | None:
    """Wait for the next checkpoint to evaluate and return its step; None: there will be none."""
    while True:
        steps = [step_of(path) for path in checkpoints_in(folder / CHECKPOINTS)]
        waiting = outstanding(folder, steps, every=config.every, last=until)
        if waiting or max(steps, default=0) >= until:
            return waiting[0] if waiting else None
        time.sleep(POLL_SECONDS)


def _evaluate(
    config: FollowConfig,
    folder: Path,
    step: int,
    prompts: Sequence[Prompt],
    manager: Any,
    open_model: Open,
    log: EvaluationLog,
    board: EvaluationBoard,
) -> None:
    """Evaluate one checkpoint, unless it is deleted before it could be read."""
    began, checkpoint = time.perf_counter(), step_folder(folder / CHECKPOINTS, step)
    loaded = _open(checkpoint, config, open_model)
    if loaded is None:
        return
    found = evaluate_checkpoint(config, loaded, prompts, manager)
    found["seconds"] = time.perf_counter() - began
    board.add(step, found, depth=loaded.config.num_hidden_layers)
    log.add(step, found)
    logger.info("evaluated step %d in %.1f s", step, found["seconds"])


def _open(checkpoint: Path, config: FollowConfig, open_model: Open) -> Loaded | None:
    """Return the model, or None if the run deleted the checkpoint meanwhile."""
    try:
        return open_model(str(checkpoint), config)
    except (ValueError, RuntimeError, OSError):
        if checkpoint.is_dir():
            raise
        logger.warning("%s was deleted while it was read", checkpoint)
        return None


def _say_missed(config: FollowConfig, folder: Path, until: int) -> None:
    """Say which checkpoints of the schedule were gone before they could be evaluated."""
    if config.every is None:
        return
    due = {*range(config.every, until + 1, config.every), until}
    missed = sorted(due - evaluated_steps(folder))
    if missed:
        steps = ", ".join(map(str, missed[:10])) + (", ..." if len(missed) > 10 else "")
        logger.warning(
            "not evaluated, for their checkpoints were gone: steps %s; evaluate more seldom, or "
            "keep more checkpoints",
            steps,
        )
