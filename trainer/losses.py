"""Token-summed cross entropy of exits, with one chunk of one exit's logits alive at a time.

Letters: B rows, S positions, D width, N = B * S, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data_pipelines.loader import IGNORED
from models.llama import Llama


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
    measure: bool,
) -> ExitLosses:
    """Send the hidden states of several exits through the one shared head (LayerSkip, eq. 4).

    Each chunk is back-propagated into its hidden states at once and the head's gradient is summed
    in float32, so memory does not grow with the number of exits. The trunk is left to one backward
    pass over all exits.

    Args:
        model: its norm and head; they must be gathered.
        hiddens: for each exit its hidden states (B, S, D).
        labels: (B, S), `IGNORED` where there is nothing to predict.
        weights: for each exit its weight in the loss; an exit without one is only measured, and
            without any there is no backward pass.
        total_tokens: valid tokens of the whole step over all ranks; divides the loss.
        chunk_tokens: positions whose logits are alive at once.
        measure: whether to count agreements.
    """
    flat = labels.flatten()  # (N,)
    head = _HeadGradient(model) if weights else None
    gradients, loss_sums, agreements = {}, {}, {}
    reference: Tensor | None = None
    for e in sorted(hiddens, reverse=True):  # the last exit first: the others are compared with it
        scale = weights.get(e, 0.0) / total_tokens
        gradient, loss_sums[e], guesses = _one_exit(
            model, hiddens[e], flat, scale, chunk_tokens, head if scale else None, measure
        )
        if gradient is not None:
            gradients[e] = gradient
        if measure:
            reference = guesses if reference is None else reference
            agreements[e] = ((guesses == reference) & (flat != IGNORED)).sum()
    if head is not None:
        head.deliver()
    return ExitLosses(gradients, loss_sums, agreements)


def _one_exit(
    model: Llama,
    hidden: Tensor,
    labels: Tensor,
    scale: float,
    chunk_tokens: int,
    head: "_HeadGradient | None",
    measure: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradient (B, S, D) or None, the loss sum, and the argmax (N,) if measured."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=wide, device=hidden.device)
    gradients, guesses = [], [labels.new_empty(0)]
    chunks = torch.split(hidden.detach().flatten(0, 1), chunk_tokens)  # of (N, D)
    for chunk, target in zip(chunks, torch.split(labels, chunk_tokens), strict=True):
        with torch.set_grad_enabled(head is not None):
            chunk.requires_grad_(head is not None)
            logits = model.unembed(chunk).to(wide)  # (chunk, V)
            loss = cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        if head is not None:
            gradients.append(head.backward(loss * scale, chunk))
        total += loss.detach()
        if measure:
            guesses.append(logits.detach().argmax(dim=-1))
    gradient = torch.cat(gradients).view_as(hidden) if gradients else None
    return gradient, total, torch.cat(guesses)


class _HeadGradient:
    """Sums the gradient of norm and head over chunks in float32, whatever their type.

    Under mixed precision the gathered weights are bfloat16; adding many chunks up in bfloat16 would
    lose small ones.
    """

    def __init__(self, model: Llama) -> None:
        self._parameters = model.head_parameters()
        self._sums: list[Tensor] = []

    def backward(self, loss: Tensor, chunk: Tensor) -> Tensor:
        """Add the head's gradient of this loss, return the chunk's (N, D)."""
        gradient, *ours = torch.autograd.grad(loss, [chunk, *self._parameters])
        if not self._sums:
            self._sums = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in ours]
        else:
            for total, g in zip(self._sums, ours, strict=True):
                total += g
        return gradient

    def deliver(self) -> None:
        """Hand the sums to the parameters, where the trunk's backward pass finds them."""
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            total = total.to(parameter.dtype)
            parameter.grad = total if parameter.grad is None else parameter.grad + total
