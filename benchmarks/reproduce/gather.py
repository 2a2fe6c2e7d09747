"""What the runs have left on disk, as plain data: losses of every exit, and sweeps of decoding."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reproduce.arms import Arm
from trainer.metrics import FILE_NAME, read_metrics

SWEEP = "sweep.csv"
"""In a run's folder: the grid of exits and draft lengths that `inference sweep` has measured."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """Self-speculation with one exit and draft length, against plain decoding in turn."""

    acceptance: float
    speedup: float
    same_output: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    arm: str
    seed: int
    losses: dict[int, dict[int, float]]
    """Validation step -> exit -> nats a token."""
    tokens_a_step: int
    drafts: dict[tuple[int, int], Drafted]
    """(exit, draft length) -> what it gave; empty until it is swept."""

    @property
    def last(self) -> dict[int, float]:
        """Exit -> nats a token at the end."""
        return self.losses[max(self.losses)]


def outcome(arm: str, seed: int, folder: Path) -> Outcome:
    """Read a finished run.

    Raises:
        RuntimeError: if it has no validation.
    """
    lines = read_metrics(folder / FILE_NAME)
    valid = {each["step"]: each["loss_per_exit"] for each in lines if each["kind"] == "valid"}
    train = [each for each in lines if each["kind"] == "train"]
    if not valid or not train:
        raise RuntimeError(f"{folder / FILE_NAME} has no validation: run it again to go on")
    return Outcome(
        arm=arm,
        seed=seed,
        losses=valid,
        tokens_a_step=train[-1]["tokens_seen"] // train[-1]["step"],
        drafts=read_sweep(folder / SWEEP),
    )


def read_sweep(path: Path) -> dict[tuple[int, int], Drafted]:
    """Return the rows of a sweep's file; none if it is not there."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (int(row["exit_layer"]), int(row["num_speculations"])): Drafted(
                acceptance=float(row["acceptance"]),
                speedup=float(row["speedup"]),
                same_output=row["same_output"] == "True",
            )
            for row in csv.DictReader(file)
        }


def trained(outcomes: Iterable[Outcome], arms: Iterable[Arm]) -> list[Arm]:
    """Return those of the arms of which there are outcomes."""
    names = {each.arm for each in outcomes}
    return [arm for arm in arms if arm.name in names]


def of_arm(outcomes: Iterable[Outcome], arm: str) -> list[Outcome]:
    """Return the outcomes of one arm in the order of seeds.

    Raises:
        ValueError: if there are none.
    """
    found = sorted((each for each in outcomes if each.arm == arm), key=lambda each: each.seed)
    if not found:
        raise ValueError(f"there is no run of {arm}")
    return found
