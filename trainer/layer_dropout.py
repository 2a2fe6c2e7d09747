"""Layer dropout: which rows skip which layers, as a plan (arXiv 2404.16710, section 4.1).

How many rows of a layer survive is drawn once for a step, the same for all microbatches, so that
all ranks visit the same layers and do equal work. Which rows survive is each microbatch's own
draw. Within a microbatch that is exactly an independent coin for every row: a binomial count,
then a uniform choice of so many rows. Draws depend on what they decide and on nothing else, in
particular not on the rank or on earlier draws.
"""

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from models.init import derive_seed
from models.plan import LayerPlan, dropped
from trainer.curriculum import dropout_scale
from trainer.recipe_config import Curve, LayerDropoutConfig


def depth_scale(curve: Curve, layer: int, num_layers: int) -> float:
    """Return D(l), the share of the full drop probability that a layer has: 1 for the last.

    `exp` is 2^(l/(L-1)) - 1 and `linear` l/(L-1), both 0 for the first layer; `uniform` is 1.
    """
    depth = layer / max(num_layers - 1, 1)
    return {"exp": float(2.0**depth - 1.0), "linear": depth, "uniform": 1.0}[curve]


def drop_probabilities(
    config: LayerDropoutConfig | None, num_layers: int, step: int, total_steps: int
) -> list[float]:
    """Return p = S(t) D(l) p_max of every layer at a step; zeros without a section."""
    if config is None:
        return [0.0] * num_layers
    peak = config.max_prob * dropout_scale(config.over_time, step, total_steps)
    return [peak * depth_scale(config.curve, layer, num_layers) for layer in range(num_layers)]


def survivor_counts(
    config: LayerDropoutConfig | None,
    *,
    num_layers: int,
    step: int,
    total_steps: int,
    seed: int,
    rows: int,
) -> list[int]:
    """Return how many of a microbatch's rows run each layer: one draw for all microbatches.

    Each is a draw from Binomial(rows, 1 - p), or with granularity `batch` all rows or none.
    """
    counts = []
    for layer, p in enumerate(drop_probabilities(config, num_layers, step, total_steps)):
        coin = Random(derive_seed("layer dropout count", seed, step, layer))
        if config is not None and config.granularity == "batch":
            counts.append(rows if coin.random() >= p else 0)
        else:
            counts.append(sum(coin.random() >= p for _ in range(rows)))
    return counts


def plan_step(
    config: LayerDropoutConfig | None,
    *,
    num_layers: int,
    step: int,
    total_steps: int,
    seed: int,
    microbatch: int,
    rows: int,
    exits: Sequence[int] = (),
) -> LayerPlan:
    """Return the plan of one microbatch of one step.

    Args:
        config: None, like `max_prob` 0, gives the full plan.
        num_layers: L.
        step: optimiser step, from 0.
        total_steps: T.
        seed: of the run.
        microbatch: index in the global batch of the step, so that a microbatch has the same plan
            whatever rank it lands on.
        rows: samples in the microbatch.
        exits: exits that the plan returns; default: the last.
    """
    counts = survivor_counts(
        config, num_layers=num_layers, step=step, total_steps=total_steps, seed=seed, rows=rows
    )
    exits = tuple(exits) or (num_layers,)
    survivors = [
        None if count == rows else _choose(rows, count, (seed, step, layer, microbatch))
        for layer, count in enumerate(counts[: max(exits)])  # nothing above them is asked for
    ]
    return dropped(survivors, exits=exits)


def _choose(rows: int, count: int, key: tuple[int, ...]) -> Tensor:
    """Return (count,) sorted row ids, each choice of so many rows equally likely."""
    chosen = Random(derive_seed("layer dropout rows", *key)).sample(range(rows), count)
    return torch.tensor(sorted(chosen), dtype=torch.int64)
