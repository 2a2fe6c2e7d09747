"""Tokens per second that a setting of self-speculation should give: acceptance against cost.

Letters: X exits, P positions, C confidence thresholds, M most drafts, E exit layer, L layers.
"""

from collections.abc import Sequence

import numpy as np

from inference.acceptance import (
    RIGHT_GOES_ON,
    RIGHT_STOPS,
    WRONG_GOES_ON,
    Array,
)
from inference.costs import Prices


def expected_drafts(chances: Array, most: int) -> tuple[Array, Array]:
    """Return the mean numbers of drafts made and accepted in a round that may draft 1..M.

    A draft is made while the ones before it were confident; after a wrong one, which only the
    verifier knows to be wrong, confidence is that of any token.

    Args:
        chances: (X, P, C, 4), see `Acceptance.chances`.
        most: M.

    Returns:
        Both (M, X, C).
    """
    on = np.ones(chances[:, 0, :, 0].shape)  # (X, C) chance of drafting, all right so far
    off = np.zeros_like(on)  # and of drafting after a wrong one
    made, accepted = np.zeros((2, most, *on.shape))
    any_goes_on = chances[:, 0, :, RIGHT_GOES_ON] + chances[:, 0, :, WRONG_GOES_ON]
    for draft in range(most):
        here = chances[:, min(draft, chances.shape[1] - 1)]  # (X, C, 4)
        made[draft] = on + off
        accepted[draft] = on * (here[..., RIGHT_GOES_ON] + here[..., RIGHT_STOPS])
        off = off * any_goes_on + on * here[..., WRONG_GOES_ON]
        on = on * here[..., RIGHT_GOES_ON]
    return made.cumsum(0), accepted.cumsum(0)


def speculative_rates(
    chances: Array, prices: Prices, exits: Sequence[int], depth: int, most: int
) -> Array:
    """Return tokens per second (M, X, C) of drafting 1..M tokens at each exit and threshold.

    A round passes each drafted token, and the one before, singly through E layers, then all of them
    together through the others.
    """
    made, accepted = expected_drafts(chances, most)  # (M, X, C)
    below = np.asarray(exits, dtype=float)[None, :, None]  # (1, X, 1)
    verified = made + 1
    ks = np.arange(1, len(prices.layer) + 1)
    together = np.interp(verified, ks, prices.layer)
    accept = np.interp(verified, ks, prices.accept)
    seconds = below * verified * prices.layer[0] + made * prices.draft
    seconds = seconds + (depth - below) * together + accept
    rates: Array = (accepted + 1) / seconds
    return rates


def plain_rate(prices: Prices, depth: int) -> float:
    """Return tokens per second of a token at a time."""
    return float(1 / (depth * prices.layer[0] + prices.accept[0]))
