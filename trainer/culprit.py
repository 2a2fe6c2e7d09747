"""Where numbers went wrong: looked for only once a step's loss or gradient norm is not finite.

The step is computed again, one microbatch at a time, with every layer as an exit: which layer's
output, or whose gradient, is the first that is not finite can then be seen without any hook on the
model. That costs one more step, and nothing as long as all is well.

Letters: B rows, S positions, D width.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from data_pipelines.loader import Batch
from models.plan import LayerPlan
from parallel.engine import Engine
from parallel.finite import is_broken
from parallel.together import all_ranks
from trainer.losses import exit_losses
from trainer.side_data import batch_tokens


def find_culprit(
    engine: Engine,
    batches: Sequence[Batch],
    plans: Sequence[LayerPlan],
    weights: dict[int, float],
    *,
    total_tokens: int,
    chunk_tokens: int | None,
    device: torch.device,
) -> str:
    """Say in a clause where the numbers of a step stop being finite, the same on every rank.

    Every rank calls it, after `grad_norm` and with what it gave to the step. The gradients of the
    step are gone afterwards.
    """
    weighed = [name for name, tensor in engine.weights().items() if is_broken(tensor)]
    gradients = engine.broken_gradients()
    engine.forget()
    everyone = all_ranks((weighed, gradients))
    for rank, (names, _) in enumerate(everyone):
        if names:
            return (
                f"{len(names)} weights are not finite before the step, the first {names[0]}, on "
                f"rank {rank}: the model that was loaded is at fault"
            )
    places = []
    for batch, plan in zip(batches, plans, strict=True):
        run = partial(_replay, engine, batch, plan, weights, device=device)
        places.append(run(total_tokens=total_tokens, chunk_tokens=chunk_tokens))
        engine.forget()
    parts = [clause for clause in (_first(all_ranks(places)), _named(everyone)) if clause]
    return "; ".join(parts)


def _first(everyone: Sequence[Sequence[str | None]]) -> str:
    """Name the first microbatch in which something was not finite."""
    size = len(everyone)
    for index, of_ranks in enumerate(zip(*everyone, strict=True)):
        for rank, place in enumerate(of_ranks):
            if place is not None:
                return f"first {place}, in microbatch {index * size + rank}, which rank {rank} has"
    return (
        "yet all of it was finite when the step was computed again: a sum too large for its type, "
        "or a fault of the hardware"
    )


def _named(everyone: Sequence[tuple[list[str], list[str]]]) -> str:
    """Name the parameter nearest to the loss whose gradient is not finite."""
    names = {name: rank for rank, (_, found) in enumerate(everyone) for name in found}
    if not names:
        return ""
    longest = max((found for _, found in everyone), key=len)
    nearest = longest[-1]
    return f"the gradients of {len(names)} parameters are not finite, up to that of {nearest}"


def _replay(
    engine: Engine,
    batch: Batch,
    plan: LayerPlan,
    weights: dict[int, float],
    *,
    total_tokens: int,
    chunk_tokens: int | None,
    device: torch.device,
) -> str | None:
    """Compute a microbatch (B, S) again; name the first layer that something is wrong with."""
    tokens = batch_tokens(batch, engine.model.config, device)
    visited = [0, *sorted(v.layer + 1 for v in plan.visits)]
    watched = replace(plan, exits=tuple(sorted({*visited, *plan.exits})))
    hiddens = engine.forward(batch.ids.to(device), tokens, watched.to(device))  # (B, S, D) each
    outputs = {e: _flag(hiddens[e]) for e in visited}
    losses = exit_losses(
        engine.model,
        {e: hiddens[e] for e in plan.exits},
        batch.labels.to(device),
        weights,
        total_tokens=total_tokens,
        chunk_tokens=chunk_tokens,
        measure=False,
        add_gradient=engine.add_gradient,
    )
    arrived: dict[int, Tensor] = {}
    for e in visited:  # after the hooks of the losses, which add what exits contribute
        hiddens[e].register_hook(partial(_look, arrived, e))  # type: ignore[no-untyped-call]
    used = list(losses.gradients)
    engine.backward([hiddens[e] for e in used], [losses.gradients[e] for e in used])
    for e, flag in outputs.items():
        if flag:
            return f"seen in {_output(e)}"
    for e, value in losses.loss_sums.items():
        if _flag(value):
            return f"seen in the loss at exit {e}, whose hidden states are finite"
    for e in sorted(arrived, reverse=True):
        if arrived[e]:
            return f"seen in the gradient of {_output(e)}"
    return None


def _output(e: int) -> str:
    return f"the output of layer {e - 1}" if e else "the embeddings"


def _look(arrived: dict[int, Tensor], e: int, gradient: Tensor) -> None:
    """Note whether an exit's gradient (B, S, D) is broken; read only when the pass is over."""
    arrived[e] = _flag(gradient)


def _flag(tensor: Tensor) -> Tensor:
    """Return whether a tensor (any shape) has a number that is not finite; 0-d."""
    return tensor.detach().isfinite().all().logical_not()
