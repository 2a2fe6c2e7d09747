"""What each exit would have drafted: its logits at positions that the full model has decided.

Hidden states pass every exit anyway; only norm and head are extra, for many positions and exits at
once.

Letters: X exits, N positions, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference.acceptance import Array
from inference.sample import SamplingConfig, distribution, in_precision
from inference.speculate import Outcome
from inference.workspace import Workspace
from models.llama import Llama


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Hidden states at every exit of consecutive positions whose next tokens are known."""

    states: dict[int, Tensor]
    """(1, N, D) by exit, the whole model's among them."""
    end: int
    """Number of positions up to and with the last of these."""

    @property
    def count(self) -> int:
        """N."""
        return next(iter(self.states.values())).shape[1]


def seen_in(outcome: Outcome, start: int, num_read: int, most: int) -> Seen:
    """Return what a round has shown, at most its last positions.

    Args:
        outcome: of a round that went on from `num_read` tokens after `start` cached ones.
        start: cached positions before it.
        num_read: S.
        most: N is no more than this; a prompt is longer.
    """
    stop = num_read + len(outcome.tokens) - 1
    kept = slice(max(0, stop - most), stop)
    return Seen({e: h[:, kept] for e, h in outcome.states.items()}, start + stop)


def shadow(
    model: Llama,
    work: Workspace,
    seen: Sequence[Seen],
    exits: Sequence[int],
    sampling: SamplingConfig,
) -> tuple[Array, Array]:
    """Return the chances of acceptance and the confidences (X, N) of every exit, N in all.

    A greedy draft is accepted if it is the full model's choice, a sampled one with the overlap of
    the two distributions (arXiv 2211.17192, section 3.1).
    """
    depth, end = model.config.num_hidden_layers, seen[-1].end
    h = torch.cat([torch.cat([s.states[e] for s in seen], 1) for e in (*exits, depth)])
    logits = model.unembed(h)  # (X + 1, N, V)
    if work.processing is not None:
        logits = torch.stack([work.change(each, end) for each in logits])
    *drafts, final = in_precision(logits)
    if sampling.is_greedy:
        choice = final.argmax(-1)  # (N,)
        matches = [(each.argmax(-1) == choice).double() for each in drafts]
    else:
        p = distribution(final, sampling)  # (N, V)
        matches = [torch.minimum(distribution(each, sampling), p).sum(-1) for each in drafts]
    sure = [(each.amax(-1) - each.logsumexp(-1)).exp() for each in drafts]  # (N,) each
    both = torch.stack([torch.stack(matches).double(), torch.stack(sure).double()]).cpu().numpy()
    return np.asarray(both[0]), np.asarray(both[1])
