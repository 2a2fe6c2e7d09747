"""What a pass costs, learned from the passes that are made anyway.

Letters: k positions of one pass, E exit layer, L layers.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.laps import Part

WINDOW = 32
"""So many of the latest: they follow a growing cache."""
QUANTILE = 0.25
"""What others do on the machine only adds time, to some passes more than to others."""
GUESS = 0.02
"""What a position beyond the first is taken to add before any such pass was measured. Low, because
a guess that is too low is corrected by the first round that relies on it, one too high never."""
LAYER, DRAFT, ACCEPT = "layer", "draft", "accept"
"""One visit; norm, head and choice of a draft; norm, head and acceptance of a verification."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds, as they are known now."""

    layer: NDArray[np.float64]
    """(K,), of one visit on k = 1..K positions."""
    draft: float
    """Of choosing one draft from hidden states."""
    accept: NDArray[np.float64]
    """(K,), of accepting among k - 1 drafts, their logits included."""


class Costs:
    """Seconds by what ran and on how many positions; the first of a kind warms up, and is out."""

    def __init__(self, most: int) -> None:
        self._most = most
        """K: longer passes read prompts and are not looked at."""
        self._seconds: dict[Part, deque[float]] = {}

    def add(self, laps: Iterable[tuple[Part, float]]) -> None:
        """Note what was measured."""
        for part, seconds in laps:
            if part[1] > self._most:
                continue
            if part in self._seconds:
                self._seconds[part].append(seconds)
            else:
                self._seconds[part] = deque(maxlen=WINDOW)

    def prices(self) -> Prices | None:
        """Return what is known; None until single positions were measured."""
        layer, accept = self._curve(LAYER), self._curve(ACCEPT)
        if layer is None or accept is None:
            return None
        drafts = self._seconds.get((DRAFT, 1))
        return Prices(layer, _usual(drafts) if drafts else float(accept[0]), accept)

    def _curve(self, name: str) -> NDArray[np.float64] | None:
        """Return seconds (K,): measured, straight lines between, and the guess beyond."""
        known = {k: _usual(s) for (n, k), s in self._seconds.items() if n == name and s}
        if 1 not in known:
            return None
        ks = sorted(known)
        seconds = np.interp(np.arange(1, self._most + 1), ks, [known[k] for k in ks])
        beyond = np.maximum(np.arange(1, self._most + 1) - ks[-1], 0)
        curve: NDArray[np.float64] = seconds + GUESS * known[1] * beyond
        return curve


def _usual(seconds: Iterable[float]) -> float:
    ordered = sorted(seconds)
    return ordered[int(QUANTILE * len(ordered))]
