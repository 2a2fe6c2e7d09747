"""One optimiser step: agree, accumulate, check, clip, update.

Letters: B rows, S positions, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipelines.loader import IGNORED, Batch
from models.plan import LayerPlan
from parallel.agree import agree
from parallel.engine import Engine
from parallel.reduce import sum_over_ranks
from trainer.culprit import find_culprit
from trainer.losses import exit_losses
from trainer.side_data import batch_tokens
from trainer.spikes import not_finite


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did, over all ranks."""

    loss: float
    """The weighted loss that was minimised."""
    loss_per_exit: dict[int, float]
    agreement_per_exit: dict[int, float]
    """Share of positions where an exit's most likely token is the last layer's; may be empty."""
    grad_norm: float
    """Global norm before clipping."""
    valid_tokens: int
    stop: bool
    """Whether some rank was asked to stop."""
    left_out: str | None = None
    """Why there was no update, in a clause; None: there was one."""

    @property
    def trained_tokens(self) -> int:
        """How many tokens the update has learnt from."""
        return self.valid_tokens if self.left_out is None else 0


Judge = Callable[[dict[int, float], float], str | None]
"""Says of a step's finite losses, by exit, and gradient norm what is wrong, if anything is."""


def train_step(
    engine: Engine,
    batches: Sequence[Batch],
    plans: Sequence[LayerPlan],
    weights: dict[int, float],
    *,
    step: int,
    learning_rate: float,
    clip_norm: float | None,
    chunk_tokens: int | None,
    device: torch.device,
    stop: bool = False,
    measure: bool = True,
    judge: Judge | None = None,
    left_out: int = 0,
    draws: Sequence[int] | None = None,
) -> StepResult:
    """Accumulate the gradient of this rank's microbatches and update the parameters.

    The loss is a sum over tokens divided by the global count of valid tokens, never a mean of
    means.

    Args:
        engine: the sharded model and its optimizer.
        batches: this rank's microbatches.
        plans: one plan for each.
        weights: for each active exit its weight in the loss.
        step: optimiser steps done before this one.
        learning_rate: of this step.
        clip_norm: limit of the global gradient norm.
        chunk_tokens: positions whose logits are alive at once; None: as the vocabulary allows.
        device: where to compute.
        stop: whether this rank was asked to stop.
        measure: whether to count agreements.
        judge: may object to the update, which is then left out; so is one whose loss or gradient
            is not finite. All ranks have to judge alike.
        left_out: how often that has happened; ranks that count differently are told apart.
        draws: for each microbatch the seed of what layers draw for it, the adapters' dropout.

    Raises:
        RuntimeError: on all ranks and before the update, if ranks disagree on the plan or if,
            without a judge, a loss or gradient is not finite.
    """
    shapes = [tuple(batch.ids.shape) for batch in batches]
    valid = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
    agreed = agree(step, plans, shapes, valid_tokens=valid, stop=stop, left_out=left_out)
    if agreed.valid_tokens == 0:
        raise RuntimeError(f"step {step}: no label in the global batch counts in the loss")
    sums: dict[str, Tensor] = {}
    for index, (batch, plan) in enumerate(zip(batches, plans, strict=True)):
        if draws is not None:
            torch.manual_seed(draws[index])
        tokens = batch_tokens(batch, engine.model.config, device)
        hiddens = engine.forward(batch.ids.to(device), tokens, plan.to(device))
        losses = exit_losses(
            engine.model,
            hiddens,
            batch.labels.to(device),
            weights,
            total_tokens=agreed.valid_tokens,
            chunk_tokens=chunk_tokens,
            measure=measure,
            add_gradient=engine.add_gradient,
        )
        used = list(losses.gradients)
        engine.backward([hiddens[e] for e in used], [losses.gradients[e] for e in used])
        for kind, values in (("loss", losses.loss_sums), ("same", losses.agreements)):
            for e, value in values.items():
                sums[f"{kind} {e}"] = sums.get(f"{kind} {e}", 0.0) + value.double()
        del hiddens, losses  # or they would be in memory while the next microbatch runs
    means = _means(sums, agreed.valid_tokens)
    per_exit = {e: means[f"loss {e}"] for e in weights}
    grad_norm = engine.grad_norm(clip_norm)
    reason = not_finite(per_exit, grad_norm)
    if reason is not None:
        where = find_culprit(
            engine,
            batches,
            plans,
            weights,
            total_tokens=agreed.valid_tokens,
            chunk_tokens=chunk_tokens,
            device=device,
        )
        reason = f"{reason}, {where}"
        if judge is None:
            raise RuntimeError(
                f"step {step}: {reason}; stopped before the update. Lower optim.lr, or look at the "
                "batch of this step; spikes.policy=skip would go on without it"
            )
    elif judge is not None:
        reason = judge(per_exit, grad_norm)
    if reason is None:
        engine.step(learning_rate)
    else:
        engine.forget()
    return StepResult(
        loss=sum(weight * per_exit[e] for e, weight in weights.items()),
        loss_per_exit=per_exit,
        agreement_per_exit={e: means[f"same {e}"] for e in weights} if measure else {},
        grad_norm=grad_norm,
        valid_tokens=agreed.valid_tokens,
        stop=agreed.stop,
        left_out=reason,
    )


def _means(sums: dict[str, Tensor], total_tokens: int) -> dict[str, float]:
    """Sum over ranks and divide by the token count, in one reduction and one transfer."""
    stacked = sum_over_ranks(torch.stack(list(sums.values())))
    return dict(zip(sums, (stacked / total_tokens).tolist(), strict=True))
