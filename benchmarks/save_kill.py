"""`python -m benchmarks.save_kill [kills=50] [seed=0]`: two ranks are killed while they save.

A tiny model saves after every step, first in the foreground, then in the background. At random
moments both ranks are killed with SIGKILL, two times of three soon after a save was seen to begin;
what they left is looked at, the newest checkpoint is checked byte by byte, and the run is started
again. In the end its losses are compared with those of a run that was never killed and never saved.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.forks import end, fork, is_running, kill
from benchmarks.launched import last_step
from benchmarks.lines import json_line, text_table
from benchmarks.tiny_run import write_tiny_config
from parallel.publish import DELETED, LATEST, PARTIAL, REPLACED, checkpoints_in, latest, step_of
from parallel.verified import verify
from trainer.metrics import FILE_NAME, read_metrics

KEEP_LAST = 2
PATIENCE_SECONDS = 120.0
ANYWHERE_SECONDS, IN_SAVE_SECONDS = 0.5, 0.1
"""Ranks are killed so long at most after the first step, or after a save has begun."""
PHASES = ("writing", "renamed", "pointed", "deleting", "between saves")
"""What a save was doing when it was killed: shards, manifest; after the new folder has its name;
after `latest` names it; while an old one is deleted."""


@dataclass(slots=True)
class Outcome:
    """What came of a run that was killed again and again."""

    phases: Counter[str] = field(default_factory=Counter)
    """How many kills came in each phase."""
    lost: list[int] = field(default_factory=list)
    """Steps that were done, but not in the newest checkpoint, by kill."""
    seconds: list[float] = field(default_factory=list)
    """From a restart to the first step after the resumed one, by kill."""
    steps: int = 0
    """Steps of the whole run."""
    same_curve: bool = False
    """Whether every loss is exactly that of the run that was never killed."""


def write_config(folder: Path, *, asynchronous: bool) -> Path:
    """Write a config, and text to train on, into a folder; return the config's path."""
    return write_tiny_config(
        folder,
        folder.parent,
        steps=10**6,
        batch={"global_size": 4, "micro_size": 2},
        optim={"lr": 1e-3},
        schedule={"kind": "constant", "warmup_steps": 2},
        validate={"every": 10**6, "sequences": 1},
        checkpoint={"every": 1, "keep_last": KEEP_LAST, "asynchronous": asynchronous},
        parallel={"device": "cpu"},
    )


def soak(folder: Path, *, asynchronous: bool, kills: int, seed: int) -> Outcome:
    """Kill a run as often as is asked for; return what came of it.

    Raises:
        RuntimeError: if a kill left no checkpoint that is whole, or the run does not go on.
    """
    config, moment, outcome = write_config(folder, asynchronous=asynchronous), 0, Outcome()
    run, draws = folder / "run", random.Random(seed)
    for moment in range(kills):
        began = time.monotonic()
        before = last_step(run / FILE_NAME)
        pids = fork([str(config)], log=folder / f"log-{moment}.txt")
        first = 1 if before else 3  # there is no checkpoint before the third step has begun
        _wait_for(run, before + first, pids, folder / f"log-{moment}.txt")
        outcome.seconds.append(time.monotonic() - began)
        in_save = draws.random() < 2 / 3
        if in_save:
            _wait_for_save(run / "checkpoints")
        time.sleep(draws.uniform(0.0, IN_SAVE_SECONDS if in_save else ANYWHERE_SECONDS))
        kill(pids)
        outcome.phases[_phase(run / "checkpoints")] += 1
        newest = latest(run / "checkpoints")
        if newest is None:
            raise RuntimeError(f"kill {moment} left no checkpoint in {run}")
        verify(newest)
        outcome.lost.append(last_step(run / FILE_NAME) - step_of(newest))
    outcome.steps = _run_until(config, run, last_step(run / FILE_NAME) + 5, folder / "log-last.txt")
    whole = folder / "whole"
    alone = [str(config), f"run_folder={whole}", "checkpoint.every=1000000"]
    _run_until(alone, whole, outcome.steps, folder / "log-whole.txt")
    outcome.same_curve = _losses(run, outcome.steps) == _losses(whole, outcome.steps)
    return outcome


def _run_until(config: Path | list[str], run: Path, step: int, log: Path) -> int:
    """Train until a step is done, then ask to stop; return the last step."""
    pids = fork(config if isinstance(config, list) else [str(config)], log=log)
    _wait_for(run, step, pids, log)
    end(pids, PATIENCE_SECONDS)
    return last_step(run / FILE_NAME)


def _wait_for(run: Path, step: int, pids: Sequence[int], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while last_step(run / FILE_NAME) < step:
        if not is_running(pids) or time.monotonic() > deadline:
            kill(pids)
            raise RuntimeError(f"the run does not reach step {step}: see {log}")
        time.sleep(0.005)


def _wait_for_save(checkpoints: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(checkpoints.glob(f"step_*{PARTIAL}")) and time.monotonic() < deadline:
        time.sleep(0.001)


def _losses(run: Path, steps: int) -> list[Any]:
    lines = [x for x in read_metrics(run / FILE_NAME) if x["kind"] == "train"]
    return [(x["step"], x["loss"], x["loss_per_exit"]) for x in lines if x["step"] <= steps]


def _phase(checkpoints: Path) -> str:
    """Say what a save was doing, by what it left."""
    found = checkpoints_in(checkpoints)
    pointer = checkpoints / LATEST
    named = pointer.read_text().strip() if pointer.is_file() else ""
    if any(checkpoints.glob(f"step_*{DELETED}")):
        return "deleting"
    if any(checkpoints.glob(f"step_*{PARTIAL}")):
        return "writing"
    if any(checkpoints.glob(f"step_*{REPLACED}")) or (found and found[-1].name != named):
        return "renamed"
    return "pointed" if len(found) > KEEP_LAST else "between saves"


def main(arguments: Sequence[str]) -> None:
    """Kill and resume; print a table and a JSON line for each kind of save.

    Raises:
        RuntimeError: if a checkpoint was lost, or a curve differs.
    """
    options = {"kills": 50, "seed": 0}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in options or not value.isdigit():
            raise ValueError(f"{argument}: give kills=NUMBER or seed=NUMBER")
        options[name] = int(value)
    rows, columns = [], ["saves", *PHASES, "steps", "most steps lost", "s to resume", "curve"]
    with tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate(("foreground", "background")):
            kills = options["kills"] // 2 + (options["kills"] % 2 if index else 0)
            outcome = soak(
                Path(folder) / name,
                asynchronous=bool(index),
                kills=kills,
                seed=options["seed"] + index,
            )
            sys.stdout.write(_json(name, outcome) + "\n")
            rows.append(_row(name, outcome))
            if not outcome.same_curve:
                raise RuntimeError(f"the curve of the {name} run is another than the unbroken one")
    sys.stdout.write(text_table(columns, rows) + "\n")


def _row(name: str, outcome: Outcome) -> list[Any]:
    phases = [outcome.phases[phase] for phase in PHASES]
    same = "the same" if outcome.same_curve else "another"
    return [name, *phases, outcome.steps, max(outcome.lost), median(outcome.seconds), same]


def _json(name: str, outcome: Outcome) -> str:
    return json_line(
        "save_kill",
        saves=name,
        kills=sum(outcome.phases.values()),
        phases=dict(outcome.phases),
        steps=outcome.steps,
        most_steps_lost=max(outcome.lost),
        seconds_to_resume=median(outcome.seconds),
        same_curve=outcome.same_curve,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
