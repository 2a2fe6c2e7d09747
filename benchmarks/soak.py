"""`python -m benchmarks.soak [minutes=30] [seed=0]`: training under faults, and long without any.

First an unbroken run of two ranks, whose memory and open files are watched. Then the same run in
another folder, with a fault every few seconds until the minutes are over: ranks are killed, stopped
and told to end, checkpoints damaged, quotas spent. It has to reach the same last step with the same
losses. What torchrun cannot start again in place is started again as a user or a scheduler would,
by the same command. Everything it writes is in a temporary folder, kept if something went wrong.
"""

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.faults import FAULTS
from benchmarks.launched import Launched, last_step, untimed, wait_until
from benchmarks.lines import json_line, text_table
from benchmarks.resources import Sample, Watch, growth
from configs.command import run_command
from parallel.checkpoint import CHECKPOINTS
from trainer.metrics import FILE_NAME, read_metrics

RANKS = 2
CALIBRATION_STEPS = 300
UNBROKEN_SHARE = 0.3
"""Of the minutes."""
PAUSE_SECONDS = (2.0, 12.0)
"""How long a run goes on between its first new step after a fault and the next fault."""
PATIENCE_SECONDS = 180.0
"""Until a run must have got on after a fault; a stopped rank takes torchrun 30 to end."""
FEWEST_SAVED = 3
"""Checkpoints before the first fault: without a good one a run rightly refuses to go on."""
SAVE_EVERY = 50
"""Steps."""
RESTARTS = 1000
"""Of torchrun, in place; more than there will be faults."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one fault cost."""

    fault: str
    what: str
    at_step: int
    """The last step that was done before the run went on."""
    resumed_from: int
    """The step of the checkpoint that it went on from."""
    seconds: float
    """From the fault to the end of the first new step."""
    in_place: bool
    """Whether torchrun started the ranks again by itself."""

    @property
    def steps_lost(self) -> int:
        """How many steps were done twice."""
        return self.at_step - self.resumed_from


def main(words: list[str]) -> None:
    """Measure and print; `words` are minutes=N and seed=N.

    Raises:
        RuntimeError: if the run with faults does not end with the curve of the unbroken one.
    """
    options = {"minutes": 30.0, "seed": 0.0}
    for word in words:
        name, _, value = word.partition("=")
        if name not in options:
            raise ValueError(f"{word} is unknown; there are minutes=30 and seed=0")
        options[name] = float(value)
    ends = time.monotonic() + 60 * options["minutes"]
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    sys.stderr.write(f"everything is in {folder}\n")
    steps = _calibrate(folder, options["minutes"])
    sys.stderr.write(f"{steps} steps without a fault\n")
    samples, seconds = unbroken(folder / "unbroken", steps)
    sys.stderr.write(f"took {seconds:.0f} s; now with faults\n")
    began = time.monotonic()
    recoveries = broken(folder / "broken", steps, seed=int(options["seed"]), ends=ends)
    report(recoveries, samples, steps, seconds, time.monotonic() - began)
    check_curves(folder, steps)
    shutil.rmtree(folder)


def write_config(folder: Path, steps: int) -> Path:
    """Write the configuration of a run in the folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "run_folder": str(folder / "run"),
        "steps": steps,
        "model": {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        },
        "data": {
            "source": {"stdlib": {"max_megabytes": 1}},
            "tokenizer": {"sentencepiece": {"vocab_size": 512}},
            "seq_len": 64,
            "cache_folder": str(folder.parent / "data"),
        },
        "batch": {"global_size": 8, "micro_size": 4},
        "optim": {"lr": 3e-3},
        "schedule": {"kind": "cosine", "warmup_steps": 50},
        "layer_dropout": {"max_prob": 0.5},
        "exit_loss": {"e_scale": 0.5, "curriculum": "rotational", "rotation": 3},
        "parallel": {"device": "cpu", "timeout_seconds": 10, "long_timeout_seconds": 60},
        "validate": {"every": 500, "sequences": 16},
        "checkpoint": {"every": SAVE_EVERY, "keep_last": 3, "asynchronous": True},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _start(folder: Path, config: Path) -> Launched:
    return Launched(
        folder / "run", [str(config)], ranks=RANKS, restarts=RESTARTS, log=folder / "log.txt"
    )


def _calibrate(folder: Path, minutes: float) -> int:
    """Return how many steps an unbroken run does in its share of the time."""
    here = folder / "calibration"
    run = _start(here, write_config(here, CALIBRATION_STEPS))
    if run.wait(600):
        raise RuntimeError(f"a run without faults failed: see {here / 'log.txt'}")
    lines = read_metrics(here / "run" / FILE_NAME)
    times = [line["step_seconds"] for line in lines if line["kind"] == "train"]
    # A quarter more for validation, checkpoints and metrics.
    return max(CALIBRATION_STEPS, int(UNBROKEN_SHARE * minutes * 60 / (1.25 * median(times))))


def unbroken(folder: Path, steps: int) -> tuple[list[Sample], float]:
    """Train without faults; return what its ranks used over time, and the seconds it took.

    Raises:
        RuntimeError: if it fails.
    """
    began = time.monotonic()
    run = _start(folder, write_config(folder, steps))
    with Watch(run) as watch:
        code = run.wait(24 * 3600)
    if code:
        raise RuntimeError(f"the run without faults failed: see {folder / 'log.txt'}")
    return watch.samples, time.monotonic() - began


def broken(folder: Path, steps: int, *, seed: int, ends: float) -> list[Recovery]:
    """Train to the same step under faults, in shuffled rounds of all of them.

    Args:
        folder: of the run, its configuration and its log.
        steps: of the run.
        seed: of the faults.
        ends: when there are no more faults, by the monotonic clock, in seconds.

    Raises:
        RuntimeError: if the run does not get on after one, or fails at its end.
    """
    draw, config = random.Random(seed), write_config(folder, steps)
    runs = [_start(folder, config)]
    recoveries: list[Recovery] = []
    left: list[str] = []
    try:
        saved = FEWEST_SAVED * SAVE_EVERY
        wait_until(lambda: last_step(runs[0].metrics) > saved, PATIENCE_SECONDS, f"step {saved}")
        while time.monotonic() < ends:
            if _pause(runs[-1], draw.uniform(*PAUSE_SECONDS), steps):
                break
            left = left or draw.sample(sorted(FAULTS), len(FAULTS))
            recoveries.append(_break(runs, left.pop(), folder, config, draw))
            sys.stderr.write(f"{recoveries[-1]}\n")
        if runs[-1].wait(24 * 3600):
            raise RuntimeError(f"the run failed at its end: see {folder / 'log.txt'}")
    finally:
        runs[-1].kill()
    return recoveries


def _pause(run: Launched, seconds: float, steps: int) -> bool:
    """Let a run go on for so long; return whether it is so near its end that no fault fits in."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and run.process.poll() is None:
        time.sleep(0.02)
    return run.process.poll() is not None or last_step(run.metrics) > steps - SAVE_EVERY


def _break(
    runs: list[Launched], name: str, folder: Path, config: Path, draw: random.Random
) -> Recovery:
    """Do the fault to the last of the runs, start further ones until one goes on; say what it took.

    Raises:
        RuntimeError: if none goes on.
    """
    starts, began = len(runs[-1].resumed_from()), time.monotonic()
    metrics, in_place = runs[-1].metrics, True
    what = FAULTS[name](runs[-1], folder / "run" / CHECKPOINTS, draw)
    reached = last_step(metrics)
    while len(runs[-1].resumed_from()) == starts:
        reached = max(reached, last_step(metrics))
        if runs[-1].process.poll() is not None:
            runs.append(_start(folder, config))
            in_place, starts = False, 0
        if time.monotonic() - began > PATIENCE_SECONDS:
            raise RuntimeError(
                f"{what} at step {reached}: nothing goes on within {PATIENCE_SECONDS:g} s; see "
                f"{folder / 'log.txt'}"
            )
        time.sleep(0.02)
    first = runs[-1].resumed_from()[-1]
    wait_until(lambda: last_step(metrics) > first, PATIENCE_SECONDS, f"step {first + 1}")
    return Recovery(name, what, reached, first, time.monotonic() - began, in_place)


def report(
    recoveries: Sequence[Recovery],
    samples: Sequence[Sample],
    steps: int,
    seconds: float,
    broken_seconds: float,
) -> None:
    """Print the tables and their JSON lines."""
    rows = []
    for name in FAULTS:
        of = [r for r in recoveries if r.fault == name]
        if not of:
            continue
        lost, took = [r.steps_lost for r in of], [r.seconds for r in of]
        rows.append((name, len(of), median(lost), max(lost), median(took), max(took)))
    columns = ("fault", "times", "steps lost", "most", "seconds to the next step", "most")
    table = growth(samples)
    used = (
        "rank",
        "from step",
        "to step",
        "MB before",
        "MB after",
        "MB a 1000 steps",
        "open files",
    )
    sys.stdout.write(
        f"{text_table(columns, rows)}\n\n"
        f"{steps} steps: {seconds:.0f} s without faults, {broken_seconds:.0f} s with\n\n"
        f"{text_table(used, [tuple(row.values()) for row in table])}\n"
    )
    names = ("fault", "times", "lost", "most_lost", "seconds", "most_seconds")
    for figures in rows:
        sys.stdout.write(json_line("soak", **dict(zip(names, figures, strict=True))) + "\n")
    for row in table:
        sys.stdout.write(json_line("soak", **row) + "\n")


def check_curves(folder: Path, steps: int) -> None:
    """Compare what the two runs recorded.

    Raises:
        RuntimeError: naming the first step at which they differ.
    """
    ours, theirs = (_curve(folder / name / "run") for name in ("broken", "unbroken"))
    if [line["step"] for line in theirs if line["kind"] == "train"] != list(range(1, steps + 1)):
        raise RuntimeError(f"the unbroken run lacks steps: see {folder}")
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            raise RuntimeError(f"the curves differ at step {b['step']}: {a} against {b}")
    if len(ours) != len(theirs):
        raise RuntimeError(f"{len(ours)} lines of metrics against {len(theirs)}: see {folder}")
    sys.stdout.write(f"\nthe curves are equal to the last bit: {len(ours)} lines\n")


def _curve(run: Path) -> list[dict[str, Any]]:
    return untimed(read_metrics(run / FILE_NAME))


if __name__ == "__main__":
    run_command(main)
