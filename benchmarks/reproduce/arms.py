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
    path: str
    """Of the config's file."""
    overrides: tuple[str, ...]
    config: PretrainConfig

    @property
    def folder(self) -> Path:
        """Where it is."""
        return Path(self.config.run_folder)


def named(names: str) -> tuple[Arm, ...]:
    """Return the arms of these names, which have commas between them.

    Raises:
        ValueError: if there is none of a name, or plain is not among them.
    """
    by_name = {arm.name: arm for arm in ARMS}
    wanted = names.split(",")
    unknown = [name for name in wanted if name not in by_name]
    if unknown or PLAIN.name not in wanted:
        fault = f"{unknown[0]} is unknown" if unknown else "plain, to compare with, is missing"
        raise ValueError(f"arms={names}: {fault}; there are {', '.join(by_name)}")
    return tuple(arm for arm in ARMS if arm.name in wanted)


def jobs(
    folder: Path,
    overrides: tuple[str, ...] = (),
    *,
    path: str = CONFIG,
    arms: tuple[Arm, ...] = ARMS,
) -> list[Job]:
    """Return all runs, those of one seed together, so that an early stop leaves whole seeds.

    Args:
        folder: holds a folder for each arm, with one for each seed.
        overrides: of every run's config, before those of its arm.
        path: of the config, which is that of the whole recipe.
        arms: which to train.

    Raises:
        ValueError: for an override that the config refuses.
    """
    return [_job(folder, arm, seed, path, overrides) for seed in SEEDS for arm in arms]


def _job(folder: Path, arm: Arm, seed: int, path: str, overrides: tuple[str, ...]) -> Job:
    words = (
        "batch.micro_size=8",  # each run is a single process here
        *overrides,
        *arm.overrides,
        f"run_folder={folder / arm.name / f'seed_{seed}'}",
        f"seed={seed}",
    )
    return Job(arm, seed, path, words, load(PretrainConfig, path, words))
