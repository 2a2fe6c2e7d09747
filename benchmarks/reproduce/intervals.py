"""Means over seeds with Student's 95% intervals, and of differences of the same seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t with 1, 2, ... 9 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean, and half the width of the interval around it; infinite if there was one value."""

    value: float
    half: float
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return abs(self.value) > self.half


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of up to ten values and its 95% interval.

    Raises:
        ValueError: for no values, or more than ten.
    """
    count = len(values)
    if not 1 <= count <= len(T_95) + 1:
        raise ValueError(f"1 to {len(T_95) + 1} values are needed, got {count}")
    if count == 1:
        return Mean(values[0], math.inf, 1)
    half = T_95[count - 2] * statistics.stdev(values) / math.sqrt(count)
    return Mean(statistics.fmean(values), half, count)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Mean:
    """Return the mean of ours minus theirs, value by value.

    Raises:
        ValueError: if they are not equally many.
    """
    return mean([a - b for a, b in zip(ours, theirs, strict=True)])


def perplexity(loss: Mean) -> tuple[float, float, float]:
    """Return the perplexity of a mean loss in nats, and of both ends of its interval."""
    ends = (loss.value - loss.half, loss.value + loss.half)
    low, high = (math.inf if end > 700 else math.exp(end) for end in ends)
    return math.exp(loss.value), low, high
