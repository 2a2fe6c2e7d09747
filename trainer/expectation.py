"""What a recipe costs before anything is drawn: means over layer dropout, sums over the curriculum.

FLOPs are linear in the rows that run, so their mean needs the drop probabilities only. Whether a
layer communicates is not: it does unless every row drops it, which at granularity `sample` has
probability p^B, and at `batch` p.
"""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from models.config import LlamaConfig
from models.training_cost import (
    ModelShapes,
    all_trained,
    recomputed_flops,
    trained_head_flops,
    trained_layer_flops,
)
from trainer.config import PretrainConfig
from trainer.exit_weights import exit_weights
from trainer.layer_dropout import drop_probabilities
from trainer.recipe_config import LayerDropoutConfig

MOMENTS = 2000
"""Steps of a run whose costs are counted one by one, in a second or two."""


class StepCost(NamedTuple):
    """Means of one step over all ranks, or sums or means over several steps."""

    flops: float
    """Of forward and backward passes."""
    recomputed: float
    """Repeated by recomputation, where that is on; not among `flops`."""
    full_flops: float
    """Of forward and backward passes, if every row ran every layer; as many exits."""
    visits: float
    """Layers that are visited, and so communicate."""
    exits: float
    """Exits with a loss."""

    @property
    def saved(self) -> float:
        """Share of the FLOPs that the recipe leaves out."""
        return 1 - self.flops / self.full_flops


def visit_probabilities(
    dropout: LayerDropoutConfig | None, dropped: list[float], rows: int
) -> list[float]:
    """Return how likely some row of a microbatch runs each layer, and so all ranks visit it.

    Args:
        dropout: gives the granularity.
        dropped: drop probability of each layer.
        rows: B of a microbatch.
    """
    together = dropout is not None and dropout.granularity == "batch"
    return [1 - (p if together else p**rows) for p in dropped]


def expected_step(
    config: PretrainConfig, model: LlamaConfig, step: int, parts: ModelShapes | None = None
) -> StepCost:
    """Return the mean cost of one step (from 0) over the draws of layer dropout.

    Args:
        config: of the run.
        model: its shape.
        step: from 0.
        parts: what of it is trained; default: all.
    """
    parts = parts or all_trained(model)
    num_layers, rows, seq_len = (
        model.num_hidden_layers,
        config.batch.global_size,
        config.data.seq_len,
    )
    exits = exit_weights(config.exit_loss, num_layers, step, config.steps)
    dropped = drop_probabilities(config.layer_dropout, num_layers, step, config.steps)
    dropped = dropped[: max(exits)]  # nothing above the highest exit is visited
    of_layer = partial(trained_layer_flops, model, parts, seq_len=seq_len)
    again = partial(recomputed_flops, model, parts, seq_len=seq_len)
    run = [(layer, rows * (1 - p)) for layer, p in enumerate(dropped)]
    heads = len(exits) * trained_head_flops(model, parts, rows=rows, seq_len=seq_len)
    return StepCost(
        flops=sum(of_layer(layer, rows=count) for layer, count in run) + heads,
        recomputed=sum(again(layer, rows=count) for layer, count in run)
        if config.parallel.recompute
        else 0.0,
        full_flops=sum(of_layer(layer, rows=rows) for layer in range(num_layers)) + heads,
        visits=sum(
            visit_probabilities(config.layer_dropout, dropped, config.batch.micro_size),
        ),
        exits=len(exits),
    )


def expected_around(
    config: PretrainConfig, model: LlamaConfig, step: int, parts: ModelShapes | None = None
) -> StepCost:
    """Return the mean over one period of the rotation that holds the step."""
    period = 1 if config.exit_loss is None else min(config.exit_loss.period, config.steps)
    first = min(step, config.steps - period)
    total = _sum(expected_step(config, model, first + index, parts) for index in range(period))
    return StepCost(*(value / period for value in total))


def expected_run(
    config: PretrainConfig, model: LlamaConfig, parts: ModelShapes | None = None
) -> StepCost:
    """Return the sum over all steps of a run.

    Of a long one only `MOMENTS` steps count, evenly spaced and each the next in its rotation: costs
    change slowly but for the rotation, and for the few steps at which `gradual` enables an exit.
    """
    if config.steps <= MOMENTS:
        return _sum(expected_step(config, model, step, parts) for step in range(config.steps))
    period = 1 if config.exit_loss is None else min(config.exit_loss.period, MOMENTS)
    begins = (config.steps * i // MOMENTS // period * period for i in range(MOMENTS))
    moments = (min(begin + i % period, config.steps - 1) for i, begin in enumerate(begins))
    total = _sum(expected_step(config, model, step, parts) for step in moments)
    return StepCost(*(value * config.steps / MOMENTS for value in total))


def _sum(costs: Iterable[StepCost]) -> StepCost:
    return StepCost(*map(sum, zip(*costs, strict=True)))
