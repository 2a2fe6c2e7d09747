"""Do two samples of token sequences come from one distribution? A test of homogeneity.

Letters: N sequences in a sample, K cells.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

LEAST_IN_CELL = 10
"""Both samples together; then either is expected to hold 5, from where chi-square is a fair fit."""

Outcome = tuple[int, ...]
"""The first new tokens of one generation; shorter if it ended early."""


@dataclass(frozen=True, slots=True)
class TwoSample:
    """What the test says about two samples."""

    p_value: float
    """Chance of a difference as large as this, or larger, between samples of one distribution."""
    length: int
    """So many first tokens differ most."""
    cells: int
    """Outcomes of that length told apart, rare ones together; with 1 there was no choice."""


def two_sample(first: Sequence[Outcome], second: Sequence[Outcome]) -> TwoSample:
    """Compare the joint distribution of the first token, of the first two, and so on.

    The p-value is the least of those, times their number (Bonferroni): the first token alone shows
    a wrong acceptance rule with few samples, longer beginnings a wrong state after a rejection.

    Raises:
        ValueError: if a sample is empty.
    """
    if not first or not second:
        raise ValueError("a two-sample test needs two samples, one is empty")
    longest = max(map(len, [*first, *second]))
    tests = []
    for length in range(1, longest + 1):
        cells = _cells(*(Counter(each[:length] for each in sample) for sample in (first, second)))
        tests.append(TwoSample(_homogeneity(cells), length, len(cells)))
    least = min(tests, key=lambda test: test.p_value)
    return TwoSample(min(1.0, least.p_value * len(tests)), least.length, least.cells)


def _cells(first: Counter[Outcome], second: Counter[Outcome]) -> list[tuple[int, int]]:
    """Return how often each sample falls into each cell, rare outcomes pooled with neighbours.

    Neighbours in the order of the ids, so that sequences with a common beginning go together.
    What is pooled depends on the two samples as one, which leaves the test valid.
    """
    cells: list[tuple[int, int]] = []
    open_ = (0, 0)
    for outcome in sorted(first.keys() | second.keys()):
        pair = first[outcome], second[outcome]
        if sum(pair) >= LEAST_IN_CELL:
            cells.append(pair)
            continue
        open_ = open_[0] + pair[0], open_[1] + pair[1]
        if sum(open_) >= LEAST_IN_CELL:
            cells.append(open_)
            open_ = (0, 0)
    if sum(open_):
        rarest = min(cells, key=sum, default=(0, 0))
        if cells:
            cells.remove(rarest)
        cells.append((rarest[0] + open_[0], rarest[1] + open_[1]))
    return cells


def _homogeneity(cells: Sequence[tuple[int, int]]) -> float:
    """Return the p-value of Pearson's chi-square for a 2 x K table, by the incomplete gamma."""
    if len(cells) < 2:
        return 1.0
    ratio = (sum(b for _, b in cells) / sum(a for a, _ in cells)) ** 0.5
    statistic = sum((a * ratio - b / ratio) ** 2 / (a + b) for a, b in cells)
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
