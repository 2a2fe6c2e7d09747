"""Validation: loss, perplexity, agreement and acceptance of every exit on held-out documents."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from data_pipelines.loader import IGNORED, Batch, Loader
from models.config import LlamaConfig
from models.plan import full
from parallel.engine import Engine
from parallel.reduce import sum_over_ranks
from parallel.world import World
from trainer.acceptance import MOST_DRAFTS, Counts, Speculation, count_rounds, speculation
from trainer.losses import ExitLosses, exit_losses
from trainer.metrics import ValidMetrics
from trainer.side_data import batch_tokens


@torch.no_grad()
def validate(
    engine: Engine,
    loader: Loader,
    world: World,
    *,
    step: int,
    sequences: int,
    chunk_tokens: int | None,
) -> ValidMetrics:
    """Run every layer on held-out sequences and measure every exit, 1 to L.

    Every rank makes the same number of forward passes, because each of them gathers weights; a
    rank whose share is smaller repeats a batch that then does not count.

    Args:
        engine: the sharded model.
        loader: of the validation split.
        world: this rank's place.
        step: optimiser steps done.
        sequences: at most so many.
        chunk_tokens: positions whose logits are alive at once; None: as the vocabulary allows.
    """
    began = time.perf_counter()
    num_layers = engine.model.config.num_hidden_layers
    plan = full(num_layers, exits=range(1, num_layers + 1))
    sums = torch.zeros(2 * num_layers + 1, dtype=torch.float64)  # losses, agreements, tokens
    rounds = torch.zeros(num_layers - 1, MOST_DRAFTS, 3, dtype=torch.int64)
    for batch in _share(loader, world, sequences):
        tokens = batch_tokens(batch, engine.model.config, world.device)
        hiddens = engine.forward(batch.ids.to(world.device), tokens, plan)
        losses = exit_losses(
            engine.model,
            hiddens,
            batch.labels.to(world.device),
            {},
            total_tokens=1,
            chunk_tokens=chunk_tokens,
            measure=True,
        )
        count = (batch.labels != IGNORED).sum()[None]
        sums += torch.cat([_stack(losses.loss_sums), _stack(losses.agreements), count])
        rounds += _rounds(losses, batch)
    engine.release()
    drafting = _drafting(engine.model.config, sum_over_ranks(rounds).numpy())
    *values, total = sum_over_ranks(sums).tolist()
    exits = range(1, num_layers + 1)
    loss = {e: value / total for e, value in zip(exits, values[:num_layers], strict=True)}
    same = {e: value / total for e, value in zip(exits, values[num_layers:], strict=True)}
    return ValidMetrics(
        step=step,
        loss_per_exit=loss,
        perplexity_per_exit={e: math.exp(min(value, 700.0)) for e, value in loss.items()},
        agreement_per_exit=same,
        acceptance_per_exit={e: found.acceptance for e, found in drafting.items()},
        draft_length_per_exit={e: found.draft_length for e, found in drafting.items()},
        speedup_per_exit={e: found.speedup for e, found in drafting.items()},
        tokens=int(total),
        seconds=time.perf_counter() - began,
    )


def _share(loader: Loader, world: World, sequences: int) -> Iterator[Batch]:
    """Yield this rank's batches, as many as every other rank's; padding has no labels."""
    rows = loader.micro_batch_size
    count = min(loader.num_sequential, -(-sequences // rows))
    for first in range(0, count, world.size):
        if (index := first + world.rank) < count:
            batch = loader.sequential(index)
            beyond = torch.arange(len(batch.labels)) >= sequences - index * rows  # (B,)
            yield replace(batch, labels=batch.labels.masked_fill(beyond[:, None], IGNORED))
        else:
            spare = loader.sequential(first)
            yield replace(spare, labels=torch.full_like(spare.labels, IGNORED))


def _stack(values: dict[int, Tensor]) -> Tensor:
    """Return the (X,) values of all exits in ascending order, on the CPU."""
    return torch.stack([values[e] for e in sorted(values)]).double().cpu()


def _rounds(losses: ExitLosses, batch: Batch) -> Tensor:
    """Return `count_rounds` (L - 1, K, 3) of the exits that can draft, on a batch of (B, S)."""
    earlier = sorted(losses.matches)[:-1]
    known = (batch.labels != IGNORED).numpy()  # (B, S)
    matches = np.zeros((len(earlier), *known.shape), dtype=bool)  # (L - 1, B, S)
    for index, e in enumerate(earlier):
        matches[index] = losses.matches[e].cpu().numpy()
    return torch.from_numpy(count_rounds(matches, known))


def _drafting(config: LlamaConfig, rounds: Counts) -> dict[int, Speculation]:
    """Return how each exit would draft, of counts (L - 1, K, 3) over all ranks."""
    return speculation(config, dict(enumerate(rounds, start=1)))
