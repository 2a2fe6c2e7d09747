"""What a sharded step communicates: pure functions of sizes, no process group needed.

A unit is what is gathered and reduced at once: a layer, or the root (embedding, norm, head). Sizes
are those FSDP2 and DeepSpeed really move: FSDP2 cuts every parameter along its first dimension,
into pieces padded to equal size. DeepSpeed cuts anywhere, so nothing is padded but a few numbers;
it joins the reductions of units in buckets, so they are fewer than said here. A ring is assumed, in
which each rank sends (n - 1) / n of the tensor in a gather or a reduction, twice that in an
all-reduce, and receives as much.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

from models.config import LlamaConfig
from models.training_cost import ModelShapes, all_trained

Method = Literal["fsdp", "zero-1", "zero-2", "zero-3"]
"""FSDP2 (hybrid if there are copies), or the stages of ZeRO (arXiv 1910.02054)."""
Operation = Literal["all_gather", "reduce_scatter", "all_reduce"]
Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharding:
    """How a model lies on its ranks: as much as costs depend on."""

    ranks: int
    """All of them."""
    method: Method = "fsdp"
    """Who shards what."""
    shard_ranks: int | None = None
    """Ranks that share one copy of the weights; default: all. Fewer: hybrid sharding."""
    reshard_after_forward: bool = True
    """Whether a layer is gathered again for its backward pass."""
    gather_width: int = 4
    """Bytes of a number in gathered weights: 4, or 2 for bfloat16."""
    reduce_width: int = 4
    """Bytes of a number in the reduction of gradients."""
    reduce_every_microbatch: bool = True
    """Whether gradients are reduced after every microbatch, or once a step, kept whole until then.
    """

    @property
    def shards(self) -> int:
        """Ranks that share one copy, the default resolved."""
        return self.shard_ranks or self.ranks

    @property
    def copies(self) -> int:
        """Copies of the weights."""
        return self.ranks // self.shards


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of one unit."""

    operation: Operation
    group: Literal["shard", "copy"]
    """Among the ranks of one copy, or among the holders of the same shard."""
    ranks: int
    """In the group."""
    size: int
    """Bytes of the whole tensor: a gather's result, a reduction's operand."""

    @property
    def sent(self) -> float:
        """Bytes that each rank sends; it receives as many."""
        rounds = 2 if self.operation == "all_reduce" else 1
        return rounds * self.size * (self.ranks - 1) / self.ranks


class UnitCollectives(NamedTuple):
    """The collectives of one unit, by when they come."""

    forward: list[Collective]
    backward: list[Collective]
    reduction: list[Collective]
    update: list[Collective]


def shard_numbers(shapes: Shapes, ranks: int) -> int:
    """Return how many numbers of these tensors the first rank, which has the most, holds."""
    return sum(-(-shape[0] // ranks) * prod(shape[1:]) for shape in shapes)


def unit_collectives(
    shapes: Shapes,
    sharding: Sharding,
    *,
    is_root: bool,
    trained: Shapes | None = None,
    goes_back: bool = True,
) -> UnitCollectives:
    """Return what one visited unit moves in one microbatch, and at the update.

    Under FSDP2 the root stays gathered from forward to backward. ZeRO-3 gathers layers and
    embedding twice, norm and head once a step. ZeRO-1 and -2 have whole weights, and gather what
    the update has changed; their reduction is an all-reduce, of which each rank keeps its part
    (DeepSpeed 0.19; with the reduce-scatter of the paper it would be half).

    Args:
        shapes: of the unit's parameters; of the root: embedding, norm, and head unless tied.
        sharding: who holds what.
        is_root: whether it is the root.
        trained: those of them that have a gradient; default: all.
        goes_back: whether the backward pass runs through it.
    """
    trained = shapes if trained is None else trained
    if sharding.method != "fsdp":
        found = _zero_collectives(shapes, trained, sharding, is_root)
    else:
        found = _fsdp_collectives(shapes, trained, sharding, is_root)
    found = found if goes_back else found._replace(backward=[])
    return found if trained else found._replace(reduction=[], update=[])


def _fsdp_collectives(
    shapes: Shapes, trained: Shapes, sharding: Sharding, is_root: bool
) -> UnitCollectives:
    shards = sharding.shards
    whole, reduced = (shard_numbers(some, shards) * shards for some in (shapes, trained))
    gather = [Collective("all_gather", "shard", shards, whole * sharding.gather_width)]
    reduction = [Collective("reduce_scatter", "shard", shards, reduced * sharding.reduce_width)]
    if sharding.copies > 1:
        size = reduced // shards * sharding.reduce_width
        reduction.append(Collective("all_reduce", "copy", sharding.copies, size))
    again = sharding.reshard_after_forward and not is_root
    return UnitCollectives(gather, gather if again else [], reduction, [])


def _zero_collectives(
    shapes: Shapes, trained: Shapes, sharding: Sharding, is_root: bool
) -> UnitCollectives:
    def one(operation: Operation, some: Shapes, width: int) -> Collective:
        return Collective(operation, "shard", sharding.ranks, width * sum(map(prod, some)))

    def gather(some: Shapes) -> Collective:
        return one("all_gather", some, sharding.gather_width)

    if sharding.method in ("zero-1", "zero-2"):
        reduction = [one("all_reduce", trained, sharding.reduce_width)]
        return UnitCollectives([], [], reduction, [gather(trained)])
    reduction = [one("reduce_scatter", trained, sharding.reduce_width)]
    if not is_root:
        return UnitCollectives([gather(shapes)], [gather(shapes)], reduction, [])
    table, *rest = shapes
    again = [] if len(rest) > 1 else [gather([table])]  # a tied head is the table once more
    once = [gather([shape]) for shape in rest]
    return UnitCollectives([gather([table]), *again], [gather([table])], reduction, once)


class Amount(NamedTuple):
    """So many collectives, in which each rank sends so many bytes and receives as many."""

    collectives: float
    sent: float


def step_traffic(
    config: LlamaConfig,
    sharding: Sharding,
    *,
    visited: Iterable[float],
    microbatches: int,
    parts: ModelShapes | None = None,
) -> dict[Operation, Amount]:
    """Return what each rank moves in one optimiser step, by operation.

    What is left out is the same for any model: the agreement on the plan, the sums of the losses
    and of the gradient's norm, under 1 KB.

    Args:
        config: of the model.
        sharding: who holds what. Groups of one rank move nothing and are not counted.
        visited: for each layer whether the step's plans visit it, as 1 or 0, or how likely.
        microbatches: of one rank in one step, all of which visit the same layers.
        parts: what of the model is trained; default: all.
    """
    parts = parts or all_trained(config)
    reductions = microbatches if sharding.reduce_every_microbatch else 1
    root = unit_collectives(parts.root.all, sharding, is_root=True, trained=parts.root.trained)
    units = [(root, 1.0)]
    for layer, (unit, weight) in enumerate(zip(parts.layers, visited, strict=True)):
        goes_back = layer >= parts.lowest
        of_layer = unit_collectives(
            unit.all, sharding, is_root=False, trained=unit.trained, goes_back=goes_back
        )
        units.append((of_layer, weight))
    found: dict[Operation, Amount] = {}

    def add(collectives: list[Collective], times: float) -> None:
        for one in collectives:
            if one.ranks > 1:
                count, sent = found.get(one.operation, (0.0, 0.0))
                found[one.operation] = Amount(count + times, sent + times * one.sent)

    for collectives, weight in units:
        add(collectives.forward + collectives.backward, weight * microbatches)
        add(collectives.reduction, weight * reductions)
        add(collectives.update, 1.0)  # a zero gradient moves weights too: law 3
    return found


def total_traffic(traffic: dict[Operation, Amount]) -> Amount:
    """Return the sum over operations."""
    amounts = traffic.values()
    return Amount(sum(a.collectives for a in amounts), sum(a.sent for a in amounts))
