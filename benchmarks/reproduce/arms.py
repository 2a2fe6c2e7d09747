"""What is compared: the recipe, its parts, and its curricula."""

from dataclasses import dataclass
from pathlib import Path

from configs.load import load
from trainer.config import PretrainConfig

CONFIG = "configs/pretrain/reproduce.yaml"
SEEDS = (0, 1, 2)
"""Of weights, order of the data and draws; the same seed gives every arm the same ones."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train."""

    name: str
    title: str
    overrides: tuple[str, ...]
    """Of the config, which is that of the whole recipe."""


PLAIN = Arm("plain", "plain", ("layer_dropout=null", "exit_loss=null"))
BOTH = Arm("both", "both", ())
ABLATION = (
    PLAIN,
    Arm("dropout", "dropout only", ("exit_loss=null",)),
    Arm("exit_loss", "exit loss only", ("layer_dropout=null",)),
    BOTH,
)
"""The parts of the recipe, one by one; with both, one exit beside the last rotates."""
CURRICULA = (
    BOTH,
    Arm(
        "gradual",
        "both, gradual",
        ("exit_loss.curriculum=gradual", "exit_loss.rotation=null"),
    ),
    Arm(
        "all_exits",
        "both, all exits",
        ("exit_loss.curriculum=all", "exit_loss.rotation=null"),
    ),
)
"""Which exits take part in the loss of a step."""
ARMS = (*ABLATION, *CURRICULA[1:])


@dataclass(frozen=True, slots=True)
class Job:
    """One training run."""

    arm: Arm
    seed: int
    overrides: tuple[str, ...]
    config: PretrainConfig

    @property
    def folder(self) -> Path:
        """Where it is."""
        return Path(self.config.run_folder)


def jobs(folder: Path, overrides: tuple[str, ...] = ()) -> list[Job]:
    """Return all runs, those of one seed together, so that an early stop leaves whole seeds.

    Args:
        folder: holds a folder for each arm, with one for each seed.
        overrides: of every run's config, before those of its arm.

    Raises:
        ValueError: for an override that the config refuses.
    """
    return [_job(folder, arm, seed, overrides) for seed in SEEDS for arm in ARMS]


def _job(folder: Path, arm: Arm, seed: int, overrides: tuple[str, ...]) -> Job:
    words = (
        "batch.micro_size=8",  # each run is a single process here
        *overrides,
        *arm.overrides,
        f"run_folder={folder / arm.name / f'seed_{seed}'}",
        f"seed={seed}",
    )
    return Job(arm, seed, words, load(PretrainConfig, CONFIG, words))
