"""The weighted losses of several exits through the one shared head (LayerSkip, eq. 4).

Letters: B rows, S positions, D width, N = B * S.
"""

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from data_pipelines.loader import IGNORED
from models.gradient import add_gradient
from models.llama import Llama
from models.ranges import named
from trainer.head_loss import AddGradient, HeadGradient, chunk_size, exit_loss


@dataclass(frozen=True, slots=True)
class ExitLosses:
    """Sums over the local tokens of one microbatch; the caller reduces them over ranks.

    With weights, the sums are complete once the backward pass is over.
    """

    gradients: dict[int, Tensor] = field(default_factory=dict)
    """Where the backward pass starts: the highest weighted exit, and the gradient (B, S, D) of its
    weighted loss by its hidden states. The exits below add theirs when the pass reaches them, but
    for leaves."""
    loss_sums: dict[int, Tensor] = field(default_factory=dict)
    """For each exit its summed cross entropy, before weighting; 0-d."""
    agreements: dict[int, Tensor] = field(default_factory=dict)
    """For each exit, at how many valid positions its argmax is the last exit's; 0-d."""
    matches: dict[int, Tensor] = field(default_factory=dict)
    """For each exit, at which ones: (B, S) bool."""


def exit_losses(
    model: Llama,
    hiddens: dict[int, Tensor],
    labels: Tensor,
    weights: dict[int, float],
    *,
    total_tokens: int,
    chunk_tokens: int | None,
    measure: bool,
    add_gradient: AddGradient = add_gradient,
) -> ExitLosses:
    """Send the hidden states of several exits through the one shared head.

    Only the highest weighted exit is run at once. The others wait for the backward pass to arrive
    at their hidden states and join it there, so that memory does not grow with the number of exits:
    one chunk of one exit's logits and one exit's gradient are alive at a time. (A leaf, below all
    that is trained, is run at once too: the pass would not arrive there.) The head's gradient is
    summed over all exits in one buffer, which the last to be run delivers to the parameters.

    Args:
        model: its norm and head; they must stay gathered until the backward pass is over.
        hiddens: for each exit its hidden states (B, S, D), on which those of higher exits depend.
        labels: (B, S), `IGNORED` where there is nothing to predict.
        weights: for each exit its weight in the loss; an exit without one is only measured, and
            without any there is no backward pass.
        total_tokens: valid tokens of the whole step over all ranks; divides the loss.
        chunk_tokens: positions whose logits are alive at once; None: `chunk_size` decides.
        measure: whether to count agreements.
        add_gradient: takes the gradients of norm and head: an engine's method, as a rule.
    """
    scales = {e: weights[e] / total_tokens for e in hiddens if weights.get(e)}
    chunk_tokens = chunk_size(model.config.vocab_size, chunk_tokens)
    head = HeadGradient(model, add_gradient) if scales else None
    run = _Run(model, hiddens, labels.flatten(), scales, head, chunk_tokens, measure)
    for e in sorted(hiddens, reverse=True):  # the last exit first: the others are compared with it
        if e in scales and e < max(scales) and not hiddens[e].is_leaf:
            hiddens[e].register_hook(partial(run.join, e))  # type: ignore[no-untyped-call]
            continue
        with named(f"loss exit {e}"):
            gradient = run.exit(e)
        if gradient is not None:
            run.result.gradients[e] = gradient
    return run.result


class _Run:
    """What the exits of one microbatch share, from the highest to the lowest."""

    def __init__(
        self,
        model: Llama,
        hiddens: dict[int, Tensor],
        labels: Tensor,
        scales: dict[int, float],
        head: HeadGradient | None,
        chunk_tokens: int,
        measure: bool,
    ) -> None:
        self._model, self._labels, self._scales = model, labels, scales  # labels: (N,)
        self._chunk_tokens, self._measure = chunk_tokens, measure
        # Detached: a hook that holds the tensor it hangs on is a cycle that is never freed.
        self._hiddens = {e: h.detach() for e, h in hiddens.items()}  # (B, S, D)
        self._head, self._left = head, len(scales)
        self._reference: Tensor | None = None
        self.result = ExitLosses()

    def exit(self, e: int) -> Tensor | None:
        """Fill in the results of an exit; return its gradient (B, S, D) if it has a weight."""
        hidden, scale = self._hiddens[e], self._scales.get(e, 0.0)
        found = exit_loss(
            self._model,
            hidden.flatten(0, 1),
            self._labels,
            chunk_tokens=self._chunk_tokens,
            guess=self._measure,
            scale=scale,
            head=self._head if scale else None,
        )
        self.result.loss_sums[e] = found.loss_sum
        if found.guesses is not None:
            self._reference = found.guesses if self._reference is None else self._reference
            same = (found.guesses == self._reference) & (self._labels != IGNORED)
            self.result.agreements[e] = same.sum()
            self.result.matches[e] = same.view(hidden.shape[:2])  # (B, S)
        self._left -= e in self._scales
        if self._head is not None and e in self._scales and not self._left:
            self._head.deliver()
        return None if found.gradient is None else found.gradient.view_as(hidden)

    def join(self, e: int, above: Tensor) -> Tensor:
        """Add an exit's gradient to `above` (B, S, D), what the higher layers send down to it."""
        with named(f"loss exit {e}"):
            gradient = self.exit(e)
        return above if gradient is None else gradient.add_(above)
