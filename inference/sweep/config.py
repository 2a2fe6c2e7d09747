"""What `python -m inference sweep` is told besides how to decode."""

from collections.abc import Sequence
from dataclasses import dataclass

from inference.prompt_sets.prompt import check_sample

FRACTIONS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)
"""Of the depth: the exits that are tried unless others are named."""
LENGTHS = (1, 2, 4, 6, 8)
"""Of drafts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """Which settings to measure, on which prompts, and where to write it."""

    prompts: str
    """As for bench: a file of prompts, SET:FILE, or SET from the hub."""
    to: str
    """The .csv file, one row a setting. Rows that are there already are kept, not measured again,
    if model, prompts and settings are the same; else nothing is touched."""
    exit_layer: tuple[int, ...] = ()
    """Exits to draft with, 1..L-1, a list such as '[2,4]'; six between an eighth and three quarters
    of the depth unless set."""
    num_speculations: tuple[int, ...] = LENGTHS
    """Draft lengths, a list."""
    num_samples: int | None = 8
    """Measure on so many of the prompts, the same for every setting; null takes all."""
    sample_seed: int = 0
    """Which ones."""
    max_prompt_tokens: int | None = None
    """Leave out prompts that are longer, before any are chosen."""
    repeats: int = 1
    """Decode every prompt so many times either way and take the median of its seconds."""
    picture: str | None = None
    """The .png of the speedup over both; the name of the .csv with .png unless set."""

    def __post_init__(self) -> None:
        check_sample(self.num_samples, self.sample_seed)
        check_file("to", self.to, ".csv")
        if self.picture is not None:
            check_file("picture", self.picture, ".png")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")
        for name in ("exit_layer", "num_speculations"):
            check_list(name, getattr(self, name))
        if not self.num_speculations:
            raise ValueError("num_speculations is empty: name a draft length, such as '[4]'")


def check_file(key: str, name: str, suffix: str) -> None:
    """Refuse a file of another kind.

    Raises:
        ValueError: naming the key.
    """
    if not name.endswith(suffix):
        raise ValueError(f"{key}={name} must be a {suffix} file")


def check_list(key: str, values: Sequence[int]) -> None:
    """Refuse numbers below 1, and those that are there twice.

    Raises:
        ValueError: naming the key.
    """
    if values and min(values) < 1:
        raise ValueError(f"{key}={list(values)}: each must be at least 1")
    if len(set(values)) < len(values):
        raise ValueError(f"{key}={list(values)}: one is there twice")


def default_exits(num_layers: int) -> tuple[int, ...]:
    """Return the exits to try for a model of so many layers; none if it has a single one."""
    exits = {max(1, round(num_layers * fraction)) for fraction in FRACTIONS}
    return tuple(sorted(e for e in exits if e < num_layers))
