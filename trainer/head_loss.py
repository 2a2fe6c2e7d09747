"""Cross entropy of one exit through the head, and its gradient, one chunk of logits at a time.

The gradient is written by hand: exponentials, softmax and gradient take the logits' own memory. So
a chunk costs one (C, V) tensor in float32 and, where the model computes in a narrower type, one in
that; and what takes time are the three matrix products of an unembedding with its gradient.

Letters: C positions of a chunk, N positions, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_pipelines.loader import IGNORED
from models.llama import Llama

AddGradient = Callable[[nn.Parameter, Tensor], None]
"""Adds a gradient to that of a parameter: what engines have a method for."""

CHUNK_BYTES = 2**30
"""Float32 logits of a chunk whose size is not configured. A chunk reads the head's weight twice and
updates its gradient once: it has to be long for this to be little beside the arithmetic."""


def chunk_size(vocab_size: int, configured: int | None = None) -> int:
    """Return at how many positions logits are alive at once.

    Args:
        vocab_size: V.
        configured: `loss_chunk_tokens`; None takes the largest power of two that `CHUNK_BYTES` of
            float32 logits hold: 8192 for V = 32,000, 2048 for V = 128,256.
    """
    if configured is not None:
        return configured
    return 1 << (max(1, CHUNK_BYTES // (4 * vocab_size)).bit_length() - 1)


@dataclass(frozen=True, slots=True)
class ExitLoss:
    """What the head says about the hidden states of one exit."""

    loss_sum: Tensor
    """Summed cross entropy, before any weight; 0-d, at least float32."""
    guesses: Tensor | None
    """The most likely tokens (N,), if asked for."""
    gradient: Tensor | None
    """Of the scaled loss by the hidden states (N, D), if there is a head gradient to add to."""


class HeadGradient:
    """Sums the gradient of norm and head over chunks and exits, in one buffer of at least float32.

    Under mixed precision the gathered weights are bfloat16; adding many chunks up in bfloat16 would
    lose small ones. A frozen norm or head has no gradient and costs none.
    """

    def __init__(self, model: Llama, add_gradient: AddGradient) -> None:
        self._norm, self._head = model.head_parameters()  # (D,) and (V, D)
        self._add_gradient = add_gradient
        self._sums = {p: _wide_zeros(p) for p in (self._norm, self._head) if p.requires_grad}

    def backward(self, logits: Tensor, states: Tensor, hidden: Tensor) -> Tensor:
        """Add the gradient of a chunk, return that of its hidden states (C, D).

        Args:
            logits: the loss's gradient by the logits (C, V).
            states: what norm made (C, D) of the hidden states, with its autograd graph.
            hidden: (C, D).
        """
        by_states = logits @ self._head.detach()  # (C, D)
        wanted = [hidden, self._norm] if self._norm in self._sums else [hidden]
        by_hidden, *by_norm = torch.autograd.grad(states, wanted, by_states)
        for gradient in by_norm:
            self._sums[self._norm] += gradient
        if self._head in self._sums:
            self._add_to_head(logits, states)
        return by_hidden

    def _add_to_head(self, logits: Tensor, states: Tensor) -> None:
        """Add what the gradient by logits (C, V) at normed states (C, D) says of the matrix."""
        head_sum = self._sums[self._head]  # (V, D)
        if logits.dtype == head_sum.dtype:
            head_sum.addmm_(logits.t(), states.detach())
        else:  # no product of narrow matrices adds to a wide one, so block by block
            blocks = zip(head_sum.chunk(8), logits.chunk(8, dim=1), strict=True)
            for rows, columns in blocks:
                rows += columns.t() @ states.detach()

    def deliver(self) -> None:
        """Hand the sums over to the parameters' gradients; nothing can be added after that."""
        for parameter, total in self._sums.items():
            self._add_gradient(parameter, total.to(parameter.dtype))
        self._sums.clear()


@torch.no_grad()
def exit_loss(
    model: Llama,
    hidden: Tensor,
    labels: Tensor,
    *,
    chunk_tokens: int,
    guess: bool,
    scale: float = 0.0,
    head: HeadGradient | None = None,
) -> ExitLoss:
    """Unembed an exit's hidden states, measure them, and back-propagate their loss.

    Args:
        model: its norm and head; they must be gathered.
        hidden: (N, D), detached.
        labels: (N,), `IGNORED` where there is nothing to predict.
        chunk_tokens: C.
        guess: whether to return the most likely tokens.
        scale: what the loss is multiplied by before it is back-propagated.
        head: where the gradient of norm and head goes; None only measures.
    """
    loss_sum = _wide_zeros(hidden[0, 0])
    guesses = torch.empty_like(labels) if guess else None
    gradient = None if head is None else torch.empty_like(hidden)
    for start in range(0, len(hidden), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        chunk = _chunk_loss(model, hidden[rows], labels[rows], guess, scale, head)
        loss_sum += chunk.loss_sum
        if guesses is not None and chunk.guesses is not None:
            guesses[rows] = chunk.guesses
        if gradient is not None and chunk.gradient is not None:
            gradient[rows] = chunk.gradient
    return ExitLoss(loss_sum, guesses, gradient)


def _chunk_loss(
    model: Llama,
    hidden: Tensor,
    labels: Tensor,
    guess: bool,
    scale: float,
    head: HeadGradient | None,
) -> ExitLoss:
    """Do the work of `exit_loss` on a chunk (C, D); its logits are gone when this returns."""
    with torch.set_grad_enabled(head is not None):
        # Past the hooks of an engine, which has gathered norm and head for the whole pass.
        states = model.model.norm.forward(hidden.requires_grad_(head is not None))  # (C, D)
    logits = states.detach() @ model.head_parameters()[1].detach().t()  # (C, V)
    guesses = logits.argmax(dim=-1) if guess else None
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # the same if float32
    valid = (labels != IGNORED)[:, None]  # (C, 1)
    target = labels[:, None].masked_fill(~valid, 0)  # (C, 1)
    wide -= wide.amax(dim=-1, keepdim=True)
    at_target = wide.gather(1, target)
    sums = wide.exp_().sum(dim=-1, keepdim=True)  # (C, 1)
    loss_sum = (sums.log() - at_target).masked_fill_(~valid, 0.0).sum()
    if head is None:
        return ExitLoss(loss_sum, guesses, None)
    share = valid.to(wide.dtype) * scale  # (C, 1)
    wide *= share / sums
    wide.scatter_add_(1, target, -share)
    if wide is not logits:
        logits.copy_(wide)
    del wide
    return ExitLoss(loss_sum, guesses, head.backward(logits, states, hidden))


def _wide_zeros(like: Tensor) -> Tensor:
    """Return zeros of a tensor's shape, in float32 or, where that is wider, its type."""
    return like.new_zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32))
