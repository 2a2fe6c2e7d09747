"""Which source each sample of a mixture is from: a function of its number, exact in its shares.

Sample n falls on the point (n * golden ratio + a seeded start) mod 1, and a source owns an interval
as long as its share. These points are as even as points can be (three gaps, discrepancy O(log n /
n): Kuipers and Niederreiter, Uniform Distribution of Sequences, 2.3), so after n samples a source
has had its share to within a few, far closer than draws would come, and how many it had before any
sample is a sum with a closed form: nothing is saved, and nothing is counted through.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self

_POINTS = 1 << 32
_GOLDEN = 2654435769  # the odd number nearest to _POINTS / golden ratio


@dataclass(frozen=True, slots=True)
class Mix:
    """A mixture of sources numbered from 0."""

    borders: tuple[int, ...]
    """Where the interval of each source begins, and the end of the last, in 2^-32ths."""
    start: int
    """Where sample 0 falls."""

    @classmethod
    def of(cls, shares: tuple[float, ...], seed: int) -> Self:
        """Return the mixture with these shares, which sum to 1.

        Raises:
            ValueError: if a share is too small to ever be seen.
        """
        ends = [round(end * _POINTS) for end in accumulate(shares[:-1])]
        borders = (0, *ends, _POINTS)
        if any(low >= high for low, high in pairwise(borders)):
            raise ValueError(
                f"data.mixture: the smallest share {min(shares):.1g} is too small: raise its weight"
            )
        digest = hashlib.blake2b(f"mixture {seed}".encode(), digest_size=4).digest()
        return cls(borders, int.from_bytes(digest, "little"))

    def source(self, sample: int) -> int:
        """Return which source a sample (from 0) is from."""
        return bisect_right(self.borders, (sample * _GOLDEN + self.start) % _POINTS) - 1

    def count_before(self, sample: int, source: int) -> int:
        """Return how many of the samples before this one are from the source."""
        low, high = self.borders[source : source + 2]
        return self._count_below(sample, high) - self._count_below(sample, low)

    def _count_below(self, samples: int, border: int) -> int:
        """Count the samples whose point is below the border: x mod m < c iff x // m > (x - c) // m.

        The latter is shifted by m, to keep the numbers positive.
        """
        whole = _floor_sum(samples, _POINTS, _GOLDEN, self.start)
        shifted = _floor_sum(samples, _POINTS, _GOLDEN, self.start - border + _POINTS)
        return whole - shifted + samples


def _floor_sum(count: int, modulus: int, slope: int, offset: int) -> int:
    """Return the sum of (slope * i + offset) // modulus over i in range(count), as Euclid would."""
    total = 0
    while count:
        total += (count - 1) * count // 2 * (slope // modulus) + count * (offset // modulus)
        slope, offset = slope % modulus, offset % modulus
        highest = slope * count + offset
        count, offset = divmod(highest, modulus)
        modulus, slope = slope, modulus
    return total
