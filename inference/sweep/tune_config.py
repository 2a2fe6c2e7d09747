"""What `python -m inference tune` is told besides how to decode."""

from dataclasses import dataclass

from inference.prompt_sets.prompt import check_sample
from inference.sweep.config import LENGTHS, check_file, check_list

DEFAULT_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """Among which settings to search, on which prompts, and where to write the best.

    New tokens are 64 unless max_new_tokens says otherwise.
    """

    prompts: str
    """As for bench: a file of prompts, SET:FILE, or SET from the hub. What it finds is good for
    texts like these."""
    to: str | None = None
    """The .json file to write; decoding.json in the run's or the model's folder unless set, where
    generate finds it. Needed for a hub id."""
    exit_layer: tuple[int, ...] = ()
    """Exits to try, 1..L-1, a list; six between an eighth and three quarters of the depth unless
    set."""
    num_speculations: tuple[int, ...] = LENGTHS
    """Draft lengths to try, a list."""
    num_samples: int | None = 8
    """Measure the finalists on so many of the prompts; null takes all."""
    sample_seed: int = 0
    """Which ones."""
    max_prompt_tokens: int | None = None
    """Leave out prompts that are longer, before any are chosen."""

    def __post_init__(self) -> None:
        check_sample(self.num_samples, self.sample_seed)
        if self.to is not None:
            check_file("to", self.to, ".json")
        for name in ("exit_layer", "num_speculations"):
            check_list(name, getattr(self, name))
        if not self.num_speculations:
            raise ValueError("num_speculations is empty: name a draft length, such as '[4]'")
