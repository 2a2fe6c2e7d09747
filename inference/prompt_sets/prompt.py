"""A prompt, and which of them are taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue."""

    id: str
    """What its set calls it; else its line, from 1."""
    text: str
    references: tuple[str, ...] = ()
    """Right continuations, any of which is as good as the others; none if the set has none."""


def sample(prompts: Sequence[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """Return `count` of the prompts, or all, in their order: always the same for the same seed."""
    if count is None or count >= len(prompts):
        return list(prompts)
    chosen = Random(seed).sample(range(len(prompts)), count)
    return [prompts[index] for index in sorted(chosen)]


def check_sample(count: int | None, seed: int) -> None:
    """Refuse a sample that cannot be, or a seed that chooses nothing.

    Raises:
        ValueError: naming the key.
    """
    if count is not None and count < 1:
        raise ValueError(f"num_samples must be at least 1, got {count}; leave it out to take all")
    if count is None and seed:
        raise ValueError(f"sample_seed={seed} would be ignored: it chooses num_samples prompts")
