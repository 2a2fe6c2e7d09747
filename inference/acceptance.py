"""How often each exit would have been right, by position in a draft and by its own confidence.

A token that the full model has chosen tells about every exit whose hidden states passed by, whether
it drafted or not (as in DEL, arXiv 2504.05598): a draft is exact as long as it is right, so an exit
that agrees on a stretch of tokens would have drafted them.

Letters: X exits, P positions of a draft told apart, C confidence thresholds, N tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POSITIONS = 8
"""P: drafts further on are taken to be like the last of these."""
THRESHOLDS = (0.0, 0.2, 0.4, 0.6, 0.8)
"""A draft ends with the first token below; 0 never ends it."""
MEMORY = 384
"""Tokens after which evidence counts 1 / e."""
RIGHT_GOES_ON, RIGHT_STOPS, WRONG_GOES_ON, WRONG_STOPS = range(4)
PRIOR = 4.0
"""A later position is taken to be like the one before it with the weight of so many tokens."""
DOUBT = 1.0
"""And the first one to be wrong with the weight of so many."""


class Acceptance:
    """Decayed counts of the four things that can happen to a draft."""

    def __init__(self, num_exits: int) -> None:
        self._counts = np.zeros((num_exits, POSITIONS, len(THRESHOLDS), 4))  # (X, P, C, 4)

    def add(self, matches: Array, confidences: Array) -> None:
        """Learn from N tokens in a row.

        A token after i that were right tells about positions 1 to i + 1, since a draft could have
        begun at any of them; one that follows a wrong token tells about position 1 alone.

        Args:
            matches: (X, N) chance in 0..1 that the token is accepted as a draft of the exit.
            confidences: (X, N) what the exit thinks of its own choice.
        """
        goes_on = confidences[..., None] >= THRESHOLDS  # (X, N, C)
        right, on = matches[..., None], goes_on.astype(float)
        happened = np.stack(
            [right * on, right * (1 - on), (1 - right) * on, (1 - right) * (1 - on)], axis=-1
        )  # (X, N, C, 4)
        reached = np.ones_like(matches)  # the chance that a draft is right up to here
        for position in range(POSITIONS):
            self._counts[:, position] += (reached[..., None, None] * happened).sum(1)
            reached = np.pad(reached[:, :-1] * matches[:, :-1], ((0, 0), (1, 0)))

    def drafted(self, exit_index: int, accepted: int, drafted: int) -> None:
        """Learn from a round that drafted with an exit, without a look at its confidence."""
        counts = self._counts[exit_index, :, 0]  # (P, 4)
        for position in range(min(accepted, POSITIONS)):
            counts[position, RIGHT_GOES_ON] += 1
        if accepted < min(drafted, POSITIONS):
            counts[accepted, WRONG_GOES_ON] += 1

    def fade(self, tokens: int) -> None:
        """Let so many tokens pass."""
        self._counts *= np.exp(-tokens / MEMORY)

    def chances(self) -> Array:
        """Return what happens to a draft that is right so far, by its position: (X, P, C, 4)."""
        chances = np.empty_like(self._counts)
        before, weight = np.zeros(4), DOUBT
        before[WRONG_GOES_ON] = 1.0
        for position in range(POSITIONS):
            counts = self._counts[:, position]  # (X, C, 4)
            total = counts.sum(-1, keepdims=True) + weight
            before = chances[:, position] = (counts + weight * before) / total
            weight = PRIOR
        return chances

    def rates(self) -> Sequence[float]:
        """Return for each exit how often a first draft would be accepted."""
        first = self.chances()[:, 0, 0]  # (X, 4)
        return [float(rate) for rate in first[:, RIGHT_GOES_ON] + first[:, RIGHT_STOPS]]
