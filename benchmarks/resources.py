"""What the ranks of a run use over time: resident memory and open files."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.launched import Launched, last_step

EVERY_SECONDS = 1.0
SETTLED_SHARE = 0.3
"""Of the steps, at the beginning, in which caches still fill."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One rank at one moment."""

    rank: int
    step: int
    megabytes: float
    """Resident memory."""
    files: int
    """Open file descriptors."""


class Watch:
    """Samples all ranks of a run every second while the context is open."""

    def __init__(self, run: Launched) -> None:
        self.samples: list[Sample] = []
        self._run = run
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            step = last_step(self._run.metrics)
            for rank, pid in enumerate(self._run.ranks()):
                try:
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    files = len(os.listdir(f"/proc/{pid}/fd"))
                except OSError:  # it has just ended
                    continue
                megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
                self.samples.append(Sample(rank, step, megabytes, files))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()


def growth(samples: Sequence[Sample]) -> list[dict[str, float | int | str]]:
    """Return for each rank how memory and open files changed once caches were full.

    The growth is the slope of the line of least squares; the last tenth of the steps, in which a
    run ends, is left out.
    """
    rows: list[dict[str, float | int | str]] = []
    last = max(s.step for s in samples)
    for rank in sorted({s.rank for s in samples}):
        of = [s for s in samples if s.rank == rank and SETTLED_SHARE * last < s.step <= 0.95 * last]
        files = [s.files for s in of]
        rows.append(
            {
                "rank": rank,
                "first_step": of[0].step,
                "last_step": of[-1].step,
                "megabytes_before": of[0].megabytes,
                "megabytes_after": of[-1].megabytes,
                "megabytes_per_1000_steps": 1000 * _slope([(s.step, s.megabytes) for s in of]),
                "files": f"{min(files)} to {max(files)}",
            }
        )
    return rows


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line of least squares through (x, y)."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
