"""Figures of generations, pooled, and the fair comparison of two ways of decoding."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from inference.generation import Decode, Generation


def acceptance_rate(generations: Sequence[Generation]) -> float | None:
    """Return accepted drafts over all drafts; None if nothing was drafted."""
    drafted = sum(sum(each.draft_counts) for each in generations)
    return sum(sum(each.accept_counts) for each in generations) / drafted if drafted else None


def accept_histogram(generations: Sequence[Generation]) -> list[int]:
    """Return how many rounds accepted 0, 1, 2, ... drafts; rounds that drafted nothing are out."""
    counts = Counter(count for each in generations for count in each.accept_counts)
    return [counts[accepted] for accepted in range(max(counts, default=-1) + 1)]


def tokens_per_second(generations: Sequence[Generation]) -> float | None:
    """Return all tokens over all seconds, prefill and its tokens apart; None if there was no more.

    Self-speculation's prefill includes its first drafts; what it gave is left out like its time.
    """
    seconds = sum(each.seconds_decode for each in generations)
    return sum(each.num_decoded for each in generations) / seconds if seconds else None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Generations of the same prompts by one strategy, so many times."""

    repeats: tuple[tuple[Generation, ...], ...]
    """For each repeat, one generation for each prompt."""

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the repeats of the pooled rate."""
        return _median(tokens_per_second(each) for each in self.repeats)

    @property
    def seconds_prefill(self) -> float:
        """Median over all generations of the seconds to the first tokens."""
        return median(g.seconds_prefill for each in self.repeats for g in each)

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Those of the first repeat; the others have the same tokens."""
        return self.repeats[0]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two strategies measured side by side."""

    baseline: Measurement
    candidate: Measurement

    @property
    def speedup(self) -> float | None:
        """Median over the repeats of candidate's tokens per second over baseline's."""
        pairs = zip(self.candidate.repeats, self.baseline.repeats, strict=True)
        return _median(
            _ratio(tokens_per_second(ours), tokens_per_second(base)) for ours, base in pairs
        )

    @property
    def is_same_output(self) -> bool:
        """Whether both made the same tokens for every prompt, as lossless greedy decoding must."""
        pairs = zip(self.baseline.generations, self.candidate.generations, strict=True)
        return all(base.token_ids == ours.token_ids for base, ours in pairs)


def compare(
    baseline: Decode, candidate: Decode, prompts: Sequence[Sequence[int]], *, repeats: int = 3
) -> Comparison:
    """Measure two strategies on the same prompts, interleaved so that both meet the same machine.

    Each has one warm-up on the first prompt. Who goes first alternates.
    """
    for decode in (baseline, candidate):
        _ = tuple(decode(prompts[0]))
    pairs = [_side_by_side(baseline, candidate, prompts, repeat) for repeat in range(repeats)]
    return Comparison(
        Measurement(tuple(base for base, _ in pairs)), Measurement(tuple(ours for _, ours in pairs))
    )


def _side_by_side(
    baseline: Decode, candidate: Decode, prompts: Sequence[Sequence[int]], repeat: int
) -> tuple[tuple[Generation, ...], tuple[Generation, ...]]:
    base, ours = list[Generation](), list[Generation]()
    for index, prompt in enumerate(prompts):
        turns = [(baseline, base), (candidate, ours)]
        for decode, results in reversed(turns) if (repeat + index) % 2 else turns:
            results.append(Generation(tuple(decode(prompt))))
    return tuple(base), tuple(ours)


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator and denominator else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
