"""What a run measures, and the file that keeps it: `metrics.jsonl`, one JSON object a line.

Exits are named 1..L, L being the real output; layers 0..L-1. A step is a finished optimiser step.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from parallel.json_lines import append_line

FILE_NAME = "metrics.jsonl"
PER_EXIT = (
    "loss_per_exit",
    "exit_weights",
    "agreement_per_exit",
    "perplexity_per_exit",
    "acceptance_per_exit",
    "draft_length_per_exit",
    "speedup_per_exit",
)
"""Fields keyed by exit. JSON writes the keys as strings; `read_metrics` gives integers back."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """One training step. Per-exit fields hold the exits that were active in it."""

    step: int
    """Optimiser steps finished, this one included: the first is 1."""
    loss: float
    """Weighted sum of the exits' losses: what was minimised, in nats a token."""
    loss_per_exit: dict[int, float]
    """Mean cross entropy at each active exit, in nats a token."""
    exit_weights: dict[int, float]
    """Weight of each active exit in `loss`; they sum to 1."""
    agreement_per_exit: dict[int, float]
    """Share of valid positions at which the exit's argmax is the last layer's (teacher forced)."""
    drop_probability: list[float]
    """Drop probability of each layer at this step."""
    drop_rate: list[float]
    """Share of rows that skipped each layer in this step, measured."""
    active_exits: list[int]
    """Exits that the curriculum turned on, ascending."""
    flop_fraction: float
    """FLOPs of the executed plan over those of the plan that drops nothing."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    learning_rate: float
    """Learning rate of the update."""
    step_seconds: float
    """Wall time of the step, in seconds."""
    tokens_per_second: float
    """Tokens of all ranks over `step_seconds`."""
    tokens_seen: int
    """Tokens trained on since the run began, resumes included."""
    mfu: float | None
    """Share of the devices' peak FLOP/s that was used; None where the peak is not known."""
    memory_bytes: int
    """Peak memory of this process: accelerator memory, or resident memory on the CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ValidMetrics:
    """One pass over the validation data, every exit measured."""

    step: int
    """Optimiser steps finished before it."""
    loss_per_exit: dict[int, float]
    """Mean cross entropy at each exit, in nats a token."""
    perplexity_per_exit: dict[int, float]
    """exp(loss) at each exit."""
    agreement_per_exit: dict[int, float]
    """Share of valid positions at which the exit's argmax is the last layer's (teacher forced)."""
    acceptance_per_exit: dict[int, list[float]]
    """Accepted over drafted tokens of self-speculation along the text, for drafts of 1, 2, ...
    tokens, at each exit but the last; see `trainer/acceptance.py`."""
    draft_length_per_exit: dict[int, int]
    """The draft length of these with the largest estimated speedup."""
    speedup_per_exit: dict[int, float]
    """That estimate: plain decoding's time over self-speculation's, where reading weights is the
    limit."""
    tokens: int
    """Tokens predicted."""
    seconds: float
    """Wall time of the pass."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SpikeMetrics:
    """A step whose update was left out."""

    step: int
    """The step whose update was skipped; after going back, the first step that is done anew."""
    policy: str
    """What was done: "skip" or "rollback"."""
    reason: str
    """What made it a spike."""
    spike_step: int
    """The step that the spike was in; where it went back, it counts from the checkpoint again."""
    data_step: int
    """Whose data (from 0) it was; with what went back, it is not seen again before the next epoch.
    """
    loss: float
    """As in `StepMetrics`."""
    grad_norm: float
    """As in `StepMetrics`."""
    left_out: int
    """How many updates of late were left out, this one included."""


class MetricsWriter:
    """Appends to `metrics.jsonl`; a run that is killed and resumed leaves one curve."""

    def __init__(self, folder: str | Path, resume_step: int | None = None) -> None:
        """Open `folder/metrics.jsonl`.

        Args:
            folder: the run folder; made when it is missing.
            resume_step: optimiser steps that the resumed checkpoint has finished. Lines of later
                steps, which the run is about to repeat, are removed. None: a fresh run.

        Raises:
            ValueError: a fresh run would write into the file of another, or the file is damaged.
        """
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            _keep_until(self.path, resume_step)
        elif self.path.exists() and self.path.stat().st_size:
            raise ValueError(
                f"{self.path} holds the metrics of another run: resume that run, or choose "
                "another run_folder"
            )
        self._file = self.path.open("ab", buffering=0)

    def train(self, metrics: StepMetrics) -> None:
        """Append one training line."""
        self._write("train", metrics)

    def valid(self, metrics: ValidMetrics) -> None:
        """Append one validation line."""
        self._write("valid", metrics)

    def spike(self, metrics: SpikeMetrics) -> None:
        """Append the line of a step whose update was left out."""
        self._write("spike", metrics)

    def _write(self, kind: str, metrics: StepMetrics | ValidMetrics | SpikeMetrics) -> None:
        line = {"kind": kind} | dataclasses.asdict(metrics)
        append_line(self._file, self.path, line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`, oldest first, exits as integers.

    Each has `kind`, "train", "valid" or "spike", and the fields of `StepMetrics`, `ValidMetrics` or
    `SpikeMetrics`; a value that was not finite is None. A torn last line, left by a killed run, is
    ignored.

    Raises:
        ValueError: a line before the last is not JSON.
    """
    return [_with_exits(line) for line in _lines(Path(path))]


def _with_exits(line: dict[str, Any]) -> dict[str, Any]:
    for field in PER_EXIT:
        if field in line:
            line[field] = {int(e): value for e, value in line[field].items()}
    return line


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    rows = path.read_bytes().split(b"\n")
    for number, row in enumerate(rows[:-1], start=1):  # the last holds what follows the last "\n"
        try:
            line = json.loads(row)
            _ = line["kind"], int(line["step"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"{path}, line {number} is not JSON of a step: {row[:80]!r}; remove the line"
            ) from None
        found.append(line)
    return found


def _keep_until(path: Path, step: int) -> None:
    """Rewrite the file without lines of steps after `step`, in one rename."""
    if not path.exists():
        return
    kept = [line for line in _lines(path) if line["step"] <= step]
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
