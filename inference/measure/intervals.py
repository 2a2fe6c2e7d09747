"""Bootstrap intervals over prompts: the same resampled prompts for all that is compared.

Letters: P prompts, R resamples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95

Counts = NDArray[np.float64]
"""(P,) one number for each prompt."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, and where it lies in 95% of resamples of the prompts."""

    value: float
    low: float
    high: float


def resamples(prompts: int) -> NDArray[np.int64]:
    """Return (R, P) indices of prompts drawn with replacement; always the same ones."""
    return np.random.default_rng(0).integers(prompts, size=(RESAMPLES, prompts))


def ratio(of: Counts, to: Counts) -> Interval | None:
    """Return the sum of one count over the sum of another: tokens over seconds, say.

    Prompts are resampled, never their tokens. None if the divisor is 0; with a single prompt there
    is nothing to resample, and both ends are the figure.
    """
    if not to.sum():
        return None
    drawn = resamples(len(of))
    return _interval(of.sum() / to.sum(), of[drawn].sum(1), to[drawn].sum(1))


def ratio_of_ratios(ours: tuple[Counts, Counts], theirs: tuple[Counts, Counts]) -> Interval | None:
    """Return one `ratio` over another of the same prompts, resampled together: a speedup."""
    sums = [counts.sum() for counts in (*ours, *theirs)]
    if not all(sums):
        return None
    drawn = resamples(len(ours[0]))
    a, b, c, d = (counts[drawn].sum(1) for counts in (*ours, *theirs))
    return _interval(sums[0] / sums[1] / (sums[2] / sums[3]), a * d, b * c)


def _interval(value: float, of: Counts, to: Counts) -> Interval:
    """Return the value and the quantiles of the quotients that exist."""
    known = to > 0
    edge = (1 - LEVEL) / 2
    low, high = np.quantile(of[known] / to[known], [edge, 1 - edge])
    return Interval(float(value), float(low), float(high))
