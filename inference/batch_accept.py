"""Speculative acceptance for many rows at once, each with as many drafts as it asked for.

Letters: R rows, V vocabulary, d drafts of the longest row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from inference.sample import SamplingConfig, distribution, likeliest, pick


def choose_rows(
    logits: Tensor, sampling: SamplingConfig, uniform: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return a token (R,) for each row of logits (R, V), and the probabilities (R, V) behind it.

    Args:
        logits: (R, V).
        sampling: greedy takes the likeliest and has no probabilities.
        uniform: (R, 1) in [0, 1), unless greedy.
    """
    if uniform is None:
        return likeliest(logits), None
    p = distribution(logits, sampling)
    return pick(p, uniform), p


def accept_rows(
    logits: Tensor,
    drafts: Tensor,
    draft_p: Sequence[Tensor],
    counts: Tensor,
    sampling: SamplingConfig,
    uniform: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return how many drafts each row keeps (R,), and the token (R,) that follows them.

    The rule is that of `inference.sample.accept`, its slow twin for one row.

    Args:
        logits: (R, d + 1, V) the verifier's.
        drafts: (R, d).
        draft_p: d tensors (R, V), what the drafts were drawn from; empty when greedy.
        counts: (R,), so many drafts of a row are in question; those beyond only fill the batch.
        sampling: the same for draft and verifier.
        uniform: (R, d + 1) in [0, 1), for each draft and the token after; None when greedy.
    """
    columns = torch.arange(logits.shape[1], device=logits.device)  # (d + 1,)
    asked = columns < counts[:, None]  # (R, d + 1); the last column never is
    if uniform is None:
        choices = likeliest(logits)  # (R, d + 1)
        kept = _first_ones((drafts == choices[:, :-1]) & asked[:, :-1])  # (R,)
        return kept, _at(choices, kept)
    p = distribution(logits, sampling)  # (R, d + 1, V)
    # Beyond a row's last draft q is 0, so that the bonus token's "residual" is p itself.
    q = torch.stack((*draft_p, torch.zeros_like(p[:, 0])), dim=1) * asked[..., None]
    p_token, q_token = (x[:, :-1].gather(2, drafts[..., None])[..., 0] for x in (p, q))  # (R, d)
    kept = _first_ones((uniform[:, :-1] * q_token < p_token) & asked[:, :-1])
    p_next, q_next = _at(p, kept), _at(q, kept)  # (R, V)
    residual = (p_next - q_next).clamp(min=0)
    # A rejection implies that some p exceeds q, but for rounding, when the two are equal.
    weights = torch.where(residual.sum(-1, keepdim=True) > 0, residual, p_next)
    return kept, pick(weights, uniform[:, -1:])


def _first_ones(flags: Tensor) -> Tensor:
    """Return how many of each row of flags (R, d) are true before the first that is not, (R,)."""
    return flags.cumprod(1).sum(1)


def _at(x: Tensor, column: Tensor) -> Tensor:
    """Return x[r, column[r]] for each row of x (R, d + 1, ...)."""
    return x[torch.arange(x.shape[0], device=x.device), column]
