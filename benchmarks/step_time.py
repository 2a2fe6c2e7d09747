"""How long a step takes: sums over layers of what computes and what communicates beside it.

docs/scale.md derives it. Everything is a pure function of sizes and rates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.config import LlamaConfig
from models.flops import head_flops, layer_flops, layer_shapes, recomputed_layer_flops, root_shapes
from parallel.cost import Collective, Sharding, UnitCollectives, unit_collectives
from parallel.memory import shard_parameters

BYTES_OF_UPDATE = 40
"""Moved in memory for each parameter a rank updates: norm of the gradient 4, its scaling 8, AdamW
16 read and 12 written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a rank does how fast."""

    flops: float
    """FLOP/s of layers, as reached and not as advertised."""
    head_flops: float
    """FLOP/s of the head and its loss."""
    update: float
    """Parameters a second that the optimizer updates, clipping included."""
    collective: Callable[[Collective], float]
    """Seconds of a collective."""
    overlap: float
    """Share of the shorter one of computing and communicating that is hidden: 1 with links of
    their own, 0 where both take turns on the same cores."""

    def together(self, compute: float, communicate: float) -> float:
        """Return the seconds of both, side by side as far as they overlap."""
        return compute + communicate - self.overlap * min(compute, communicate)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one rank does in a step."""

    config: LlamaConfig
    sharding: Sharding
    rows: int
    """B of a microbatch."""
    seq_len: int
    exits: int = 1
    microbatches: int = 1
    """Of one rank."""
    recompute: bool = False


def step_seconds(
    job: Job, rates: Rates, rows_run: Sequence[int], *, skip_collectives: bool = True
) -> float:
    """Return the seconds of a step whose layers run these numbers of rows, 0 to B.

    Args:
        job: model, sharding and sizes.
        rates: of a rank.
        rows_run: for each layer how many rows run it; with 0 it is not visited.
        skip_collectives: whether a layer that is not visited is neither gathered nor reduced.
            False is a framework that saves the computing only.
    """
    visited = [rows for rows in rows_run if rows > 0 or not skip_collectives]
    layer = unit_collectives(layer_shapes(job.config), job.sharding, is_root=False)
    root = unit_collectives(root_shapes(job.config), job.sharding, is_root=True)
    passes = _forward(job, rates, visited, layer) + _backward(job, rates, visited, layer)
    of_root = _seconds(rates, root.forward + root.backward)
    heads = 3 * job.exits * head_flops(job.config, job.rows, job.seq_len) / rates.head_flops
    repeated = job.microbatches * (passes + of_root + heads)
    reductions = job.microbatches if job.sharding.reduce_every_microbatch else 1
    changed = _seconds(rates, root.update) + len(rows_run) * _seconds(rates, layer.update)
    return repeated + reductions * _seconds(rates, root.reduction) + changed + _update(job, rates)


def _forward(job: Job, rates: Rates, visited: Sequence[int], layer: UnitCollectives) -> float:
    """While a layer computes, the next one is gathered; nothing hides the first one's gather."""
    gather = _seconds(rates, layer.forward)
    of_a_row = layer_flops(job.config, 1, job.seq_len) / rates.flops
    total = gather if visited else 0.0
    for index, rows in enumerate(visited):
        total += rates.together(rows * of_a_row, gather if index + 1 < len(visited) else 0.0)
    return total


def _backward(job: Job, rates: Rates, visited: Sequence[int], layer: UnitCollectives) -> float:
    """While a layer computes, the next one is gathered and the last one's gradient reduced.

    Nothing hides the first gather and the last reduction.
    """
    gather, reduction = _seconds(rates, layer.backward), _mean_reduction(job, rates, layer)
    flops = 2 * layer_flops(job.config, 1, job.seq_len)
    if job.recompute:
        flops += recomputed_layer_flops(job.config, 1, job.seq_len)
    total = gather + reduction if visited else 0.0
    for index, rows in enumerate(reversed(visited)):
        beside = gather if index + 1 < len(visited) else 0.0
        beside += reduction if index > 0 else 0.0
        total += rates.together(rows * flops / rates.flops, beside)
    return total


def _mean_reduction(job: Job, rates: Rates, layer: UnitCollectives) -> float:
    """Return the seconds of a layer's reduction, shared among microbatches if it is once a step."""
    seconds = _seconds(rates, layer.reduction)
    return seconds if job.sharding.reduce_every_microbatch else seconds / job.microbatches


def _seconds(rates: Rates, collectives: Sequence[Collective]) -> float:
    return sum(rates.collective(one) for one in collectives)


def _update(job: Job, rates: Rates) -> float:
    return shard_parameters(job.config, job.sharding.shards) / rates.update


def step_flops(job: Job, rows_run: Sequence[int]) -> float:
    """Return the FLOPs of a rank's step, forward and backward, without recomputation."""
    layers = sum(rows_run) * layer_flops(job.config, 1, job.seq_len)
    heads = job.exits * head_flops(job.config, job.rows, job.seq_len)
    return 3 * job.microbatches * (layers + heads)
