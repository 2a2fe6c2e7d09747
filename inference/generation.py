"""What a generation is told and what it yields: plain data, the same for every way of decoding."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from inference.sample import SamplingConfig
from inference.stop import StopStrings

Processor = Callable[[Tensor, Tensor], Tensor]
"""From input ids (N, S) and scores (N, V) to scores (N, V), as a LogitsProcessor of transformers.
N is 1 and the ids are one sequence so far. It must be a function of its arguments alone: it is
asked about drafts that are rejected later, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What every way of decoding is told."""

    max_new_tokens: int = 128
    """Never exceeded."""
    min_new_tokens: int = 0
    """None of `eos_ids` is chosen before; a stop string ends the sequence all the same."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    processors: Sequence[Processor] = ()
    """Applied in this order before temperature, top-k and top-p: a `LogitsProcessorList`, say."""
    seed: int = 0
    """Of the one generator that all draws of a generation come from."""
    eos_ids: frozenset[int] = frozenset()
    """Generation ends with the first of these that it yields."""
    stop: StopStrings | None = None
    """Generation ends with the token that completes one of these strings."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must be in 0..{self.max_new_tokens}, which is max_new_tokens, got "
                f"{self.min_new_tokens}"
            )


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
