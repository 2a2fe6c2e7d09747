"""Token-summed cross entropy of exits, with one chunk of one exit's logits alive at a time.

Letters: B rows, S positions, D width, N = B * S, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.llama import Llama

IGNORED = -100
"""Label of positions that are not predicted."""


@dataclass(frozen=True, slots=True)
class ExitLosses:
    """Sums over the local tokens of one microbatch; the caller reduces them over ranks."""

    gradients: dict[int, Tensor]
    """For each exit the gradient (B, S, D) of the weighted loss by its hidden states."""
    loss_sums: dict[int, Tensor]
    """For each exit its summed cross entropy, before weighting; 0-d."""
    agreements: dict[int, Tensor]
    """For each exit, at how many valid positions its argmax is the last exit's; 0-d."""


def exit_losses(
    model: Llama,
    hiddens: dict[int, Tensor],
    labels: Tensor,
    weights: dict[int, float],
    *,
    total_tokens: int,
    chunk_tokens: int,
    backward: bool = True,
) -> ExitLosses:
    """Send the hidden states of several exits through the one shared head (LayerSkip, eq. 4).

    Each chunk is back-propagated into its hidden states at once, and the head's gradient
    accumulates, so memory does not grow with the number of exits. The trunk is left to one
    backward pass over all exits.

    Args:
        model: its norm and head; they must be gathered.
        hiddens: for each exit its hidden states (B, S, D).
        labels: (B, S), `IGNORED` where there is nothing to predict.
        weights: for each exit its weight in the loss; an exit without one is only measured.
        total_tokens: valid tokens of the whole step over all ranks; divides the loss.
        chunk_tokens: positions whose logits are alive at once.
        backward: whether gradients are wanted.
    """
    flat = labels.flatten()  # (N,)
    valid = flat != IGNORED
    gradients, loss_sums, agreements = {}, {}, {}
    reference: list[Tensor] = []
    for e in sorted(hiddens, reverse=True):  # the last exit first: the others are compared with it
        scale = weights.get(e, 0.0) / total_tokens
        grads, total, guesses = _one_exit(
            model, hiddens[e], flat, scale if backward else 0.0, chunk_tokens
        )
        reference = reference or guesses
        same = [((a == b) & v).sum() for a, b, v in zip(
            guesses, reference, valid.split(chunk_tokens), strict=True)]
        loss_sums[e], agreements[e] = total, torch.stack(same).sum()
        if grads is not None:
            gradients[e] = grads
    return ExitLosses(gradients, loss_sums, agreements)


def _one_exit(
    model: Llama, hidden: Tensor, labels: Tensor, scale: float, chunk_tokens: int
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """Return the gradient (B, S, D) or None, the loss sum, and the argmax of each chunk."""
    pieces = hidden.detach().flatten(0, 1).split(chunk_tokens)  # of (N, D)
    gradients, guesses = [], []
    total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32)).to(hidden.device)
    for piece, target in zip(pieces, labels.split(chunk_tokens), strict=True):
        with torch.set_grad_enabled(scale != 0.0):
            leaf = piece.requires_grad_(scale != 0.0)
            logits = model.unembed(leaf)  # (chunk, V)
            loss = cross_entropy(
                logits.to(total.dtype), target, ignore_index=IGNORED, reduction="sum"
            )
        if scale != 0.0:
            (loss * scale).backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None, "the head gave its input no gradient"
            gradients.append(leaf.grad)
        total += loss.detach()
        guesses.append(logits.detach().argmax(dim=-1))
    gradient = torch.cat(gradients).view_as(hidden) if gradients else None
    return gradient, total, guesses
