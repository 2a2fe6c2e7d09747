"""Times of jobs that take turns, so that all of them meet the same moods of the machine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal

Clock = Literal["wall", "cpu"]
"""Elapsed seconds, or seconds of processor time of this process with all its threads."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one job, a value for each round."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def of(self, clock: Clock) -> tuple[float, ...]:
        """Return the seconds by one of the clocks."""
        return self.wall if clock == "wall" else self.cpu

    def median(self, clock: Clock = "wall") -> float:
        """Return the median seconds."""
        return median(self.of(clock))


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and its quartiles."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def spread(values: tuple[float, ...]) -> Spread:
    """Return median and quartiles of values."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), low, high)


def interleave(
    jobs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, Timings]:
    """Run every job once in each round and return its times; every second round goes backwards.

    Args:
        jobs: what to time, by name.
        rounds: how often each runs.
        warmup: rounds that are not counted.
        wait: called before a clock is started and before it is read: a barrier of ranks, or the
            wait for a device's queue.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for index in range(warmup + rounds):
        for name in reversed(list(jobs)) if index % 2 else list(jobs):
            wait()
            wall, cpu = time.perf_counter(), time.process_time()
            jobs[name]()
            wait()
            if index >= warmup:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: Timings(*zip(*pairs, strict=True)) for name, pairs in seconds.items()}


def ratio(of: Timings, to: Timings, clock: Clock = "wall") -> Spread:
    """Return the median and quartiles of one job's time over another's, round by round."""
    pairs = zip(of.of(clock), to.of(clock), strict=True)
    return spread(tuple(ours / theirs for ours, theirs in pairs))
