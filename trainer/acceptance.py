"""Teacher-forced acceptance: how self-speculation would fare on a text that is known already.

An exit's choice at each position is compared with the last layer's, both having read the text. A
draft that begins somewhere is right for as long as the two agree; so the rounds of a decoding that
follows the text can be counted one after another, without decoding. On a text that the model has
chosen greedily these are the very rounds of self-speculation; on any other they are an estimate.

Letters: X exits, K draft lengths, B rows, S positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.config import LlamaConfig
from models.speculation import expected_speedup

MOST_DRAFTS = 12
"""K: longer drafts gain little, even where nearly all are right."""
SHOWN_DRAFTS = 6
"""The length whose acceptance is charted over training, the one that inference drafts by default:
that of the best length would jump with it."""
Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Speculation:
    """How drafting at one exit would fare."""

    acceptance: list[float]
    """Accepted over drafted tokens, for drafts of 1..K tokens; 0 if nothing could be drafted."""
    draft_length: int
    """The length with the largest speedup."""
    speedup: float
    """Of that length, where reading weights is the limit: see `models/speculation.py`."""


def count_rounds(matches: Bools, known: Bools) -> Counts:
    """Return rounds, drafted and accepted tokens (X, K, 3) of decoding with drafts of 1..K tokens.

    Positions without a label divide a row into stretches that are decoded each for itself: prompts,
    padding, and borders of documents that do not see each other. A round drafts K tokens, or all
    that are left but one.

    Args:
        matches: (X, B, S) whether an exit's choice is that of the last layer.
        known: (B, S) whether the position has a label.
    """
    rows, length = known.shape
    known = np.pad(known, ((0, 0), (0, 1)))  # (B, S + 1): nothing goes on into the next row
    right = np.pad(matches, ((0, 0), (0, 0), (0, 1))) & known  # (X, B, S + 1)
    left, run = _stretch(known), _stretch(right)  # (B, S + 1), (X, B, S + 1)
    onward = np.minimum(np.arange(length + 1) + _stretch(~known), length)  # to the next known one
    exit_index, _, row = np.ogrid[: len(matches), :MOST_DRAFTS, :rows]
    longest = np.arange(1, MOST_DRAFTS + 1)[:, None]  # (K, 1)
    at = np.broadcast_to(onward[:, 0], (len(matches), MOST_DRAFTS, rows))  # (X, K, B)
    counts = np.zeros((len(matches), MOST_DRAFTS, 3), dtype=np.int64)
    while (going := at < length).any():
        drafted = np.where(going, np.minimum(longest, left[row, at] - 1), 0)
        accepted = np.minimum(drafted, run[exit_index, row, at])
        counts += np.stack([going.sum(-1), drafted.sum(-1), accepted.sum(-1)], axis=-1)
        at = onward[row, np.minimum(at + accepted + 1, length)]
    return counts


def _stretch(flags: Bools) -> Counts:
    """Return how many flags in a row are set from each position on, along the last axis."""
    length = flags.shape[-1]
    ends = np.where(flags, length, np.arange(length))
    ends = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]  # the next that is not set
    stretch: Counts = ends - np.arange(length)
    return stretch


def speculation(config: LlamaConfig, counts: Mapping[int, Counts]) -> dict[int, Speculation]:
    """Return for each exit what its counts (K, 3) of `count_rounds` come to.

    Args:
        config: of the model.
        counts: by exit, over all ranks; an exit without any round is left out.
    """
    return {e: _of_exit(config, e, rows) for e, rows in counts.items() if rows[0, 0]}


def _of_exit(config: LlamaConfig, exit_layer: int, rows: Counts) -> Speculation:
    speedups = [
        expected_speedup(config, exit_layer, rounds=rounds, drafted=drafted, accepted=accepted)
        for rounds, drafted, accepted in rows.tolist()
    ]
    best = int(np.argmax(speedups))
    acceptance = [accepted / drafted if drafted else 0.0 for _, drafted, accepted in rows.tolist()]
    return Speculation(acceptance, best + 1, speedups[best])
