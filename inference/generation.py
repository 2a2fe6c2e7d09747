"""What a generation is told and what it yields: plain data, the same for every way of decoding."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from inference.sample import SamplingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What every way of decoding is told."""

    max_new_tokens: int = 128
    """Never exceeded."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    """Of the one generator that all draws of a generation come from."""
    eos_ids: frozenset[int] = frozenset()
    """Generation ends with the first of these that it yields."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True, slots=True)
class Round:
    """Tokens that became final together."""

    tokens: list[int]
    drafted: int = 0
    """Drafts that were verified; those after a drafted end of sequence are not counted."""
    accepted: int = 0
    """So many of `tokens`, the first ones, were drafts."""
    seconds: float = 0.0


Decode = Callable[[Sequence[int]], Iterator[Round]]
"""A way of decoding with its settings bound: prompt ids in, rounds out as they happen."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Everything about one finished generation; the first round is the one that read the prompt."""

    rounds: tuple[Round, ...]

    @property
    def token_ids(self) -> list[int]:
        """The new tokens, the end of sequence included."""
        return [token for each in self.rounds for token in each.tokens]

    @property
    def accept_counts(self) -> list[int]:
        """Accepted drafts of each round that drafted."""
        return [each.accepted for each in self.rounds if each.drafted]

    @property
    def draft_counts(self) -> list[int]:
        """Verified drafts of each round that drafted."""
        return [each.drafted for each in self.rounds if each.drafted]

    @property
    def seconds_prefill(self) -> float:
        """Seconds until the first tokens: buffers, the prompt, and the first round's drafts."""
        return self.rounds[0].seconds

    @property
    def seconds_decode(self) -> float:
        """Seconds of all later rounds."""
        return sum(each.seconds for each in self.rounds[1:])

    @property
    def num_decoded(self) -> int:
        """Tokens of all later rounds: what `seconds_decode` bought."""
        return sum(len(each.tokens) for each in self.rounds[1:])


def up_to_eos(tokens: list[int], eos_ids: frozenset[int]) -> list[int]:
    """Return the tokens up to the first end of sequence, which is kept."""
    for index, token in enumerate(tokens):
        if token in eos_ids:
            return tokens[: index + 1]
    return tokens
