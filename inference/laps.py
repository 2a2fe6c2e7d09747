"""How long each part of a round took, as the device saw it."""

from time import perf_counter
from typing import cast

import torch

Part = tuple[str, int]
"""What ran, and on how many positions at once."""


class Laps:
    """A stopwatch: each lap ends where the next one begins.

    An accelerator works behind the host's back, so that its own events are read there, once the
    host has waited for it; on the CPU it is the clock of the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = None if device.type == "cpu" else device
        self._marks: list[float | torch.Event] = [self._now()]
        self._parts: list[tuple[Part, int]] = []

    def lap(self, name: str, positions: int, visits: int = 1) -> None:
        """Say what ran since the last lap: `visits` times the same, on so many positions."""
        self._parts.append(((name, positions), visits))
        self._marks.append(self._now())

    def read(self) -> list[tuple[Part, float]]:
        """Return the seconds of one visit for each lap, oldest first, and start anew.

        The host waits for the device, which has nothing left to do if a number of its was read.
        """
        if isinstance(last := self._marks[-1], torch.Event):
            last.synchronize()
        seconds = map(_between, self._marks, self._marks[1:])
        read = [(part, s / visits) for (part, visits), s in zip(self._parts, seconds, strict=True)]
        self._marks, self._parts = [self._now()], []
        return read

    def _now(self) -> float | torch.Event:
        if self._device is None:
            return perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event


def _between(start: float | torch.Event, end: float | torch.Event) -> float:
    if isinstance(start, torch.Event) and isinstance(end, torch.Event):
        return float(start.elapsed_time(end)) / 1e3  # from milliseconds
    return cast(float, end) - cast(float, start)
