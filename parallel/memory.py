"""The memory of one rank: pure functions of sizes. Peaks, that is, of the plan that drops nothing.

Layer dropout lowers the mean, but some step may keep every row, so a run has to have room for the
full plan. Letters: B rows, S positions, D width, F inner width, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from models.activations import layer_activation_bytes
from models.config import LlamaConfig
from models.training_cost import ModelShapes, all_trained, num_numbers
from parallel.cost import Shapes, Sharding, shard_numbers

SINGLE = 4
"""Bytes of a float32 number: master weights, their gradient, Adam's two moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What one rank computes at once."""

    rows: int
    """B of a microbatch."""
    seq_len: int
    """S."""
    chunk_tokens: int
    """Positions whose logits are alive at once."""
    recompute: bool = False
    """Whether layers keep their input only."""
    accumulate: bool = False
    """Whether a step has several microbatches, so that gradients wait for the next one."""
    wide_attention: bool = False
    """See `models.activations`."""


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one rank. Three moments of a step can be its peak; each is given beside `states`."""

    states: int
    """Weights and Adam's moments: what lives from step to step."""
    gradients: int
    """Of the weights that this rank updates."""
    gathered: int
    """Whole weights of the root and of two layers: one computes, the next arrives. On one rank: a
    copy of all in the compute type."""
    activations: int
    """What the forward pass of all layers keeps, the last hidden states and their gradient."""
    loss: int
    """While the loss is computed: activations, the root's weights, the head's gradient, logits."""
    backward: int
    """While the last layer goes backward: activations, gathered weights, the head's gradient, the
    layer's own, and if it is recomputed its activations and their gradients."""
    reduction: int
    """When the root's gradient is reduced: it, that of the last layer, and all reduced ones."""

    @property
    def total(self) -> int:
        """The peak."""
        return self.states + max(self.loss, self.backward, self.reduction)


def rank_memory(
    config: LlamaConfig, sharding: Sharding, work: Workload, parts: ModelShapes | None = None
) -> RankMemory:
    """Return the peak memory of the rank that holds the most.

    Args:
        config: of the model.
        sharding: who holds what.
        work: of one rank.
        parts: what of the model is trained; default: all. Layers below all that is trained keep no
            activations; a frozen layer above is taken to keep what a trained one does, at most.
    """
    parts = parts or all_trained(config)
    tokens, width = work.rows * work.seq_len, sharding.gather_width
    kept = layer_activation_bytes(config, width=width, wide_attention=work.wide_attention)
    hidden = tokens * config.hidden_size * width
    passed = config.num_hidden_layers - parts.lowest
    layers = passed * (hidden if work.recompute else tokens * kept)
    activations, head = layers + 2 * hidden, _head_gradient(config) if parts.trains_head else 0
    logits = min(tokens, work.chunk_tokens) * config.vocab_size * bytes_per_logit(width)
    # Beside a recomputed layer about three gradients of width F are alive (fitted to one shape).
    again = tokens * (kept + 3 * config.intermediate_size * width) if work.recompute else 0
    gradients, gathered = gradient_bytes(config, sharding, parts), _gathered(parts, sharding)
    begun = activations + head + (gradients if work.accumulate else 0)
    layer = _unreduced_layer(parts, sharding)
    return RankMemory(
        states=state_bytes(config, sharding, parts),
        gradients=gradients,
        gathered=gathered,
        activations=activations,
        loss=begun + _root_gathered(parts, sharding) + logits,
        backward=begun + gathered + layer + again,
        reduction=gradients + gathered + layer + _unreduced_root(parts, sharding),
    )


def bytes_per_logit(width: int) -> int:
    """Return what one logit of a chunk takes: float32, and the compute type if it is another."""
    return SINGLE + (width if width != SINGLE else 0)


def state_bytes(config: LlamaConfig, sharding: Sharding, parts: ModelShapes | None = None) -> int:
    """Return the bytes of weights and Adam's moments on the first rank.

    FSDP2: three float32 numbers a parameter, sharded. ZeRO (arXiv 1910.02054, section 5): weights
    in the compute type; master weights (in float32 too, as DeepSpeed has it) and moments sharded
    from stage 1, weights from stage 3. Adam's step counters, 4 bytes a tensor, are left out. What
    is frozen has neither master nor moments (FSDP2 shards it in float32; one rank alone has it in
    the compute type only).
    """
    parts = parts or all_trained(config)
    trained = _shard((unit.trained for unit in parts.units), sharding.shards)
    held = _shard((unit.all for unit in parts.units), sharding.shards)
    if sharding.method == "fsdp":
        is_copy = sharding.ranks == 1 and sharding.gather_width != SINGLE
        return 3 * SINGLE * trained + SINGLE * (0 if is_copy else held - trained)
    weights = held if sharding.method == "zero-3" else _whole(parts)
    return 3 * SINGLE * trained + sharding.gather_width * weights


def gradient_bytes(
    config: LlamaConfig, sharding: Sharding, parts: ModelShapes | None = None
) -> int:
    """Return the bytes of the gradients that wait for the update; ZeRO shards them from stage 2."""
    parts = parts or all_trained(config)
    shard = _shard((unit.trained for unit in parts.units), sharding.shards)
    whole = sum(num_numbers(unit.trained) for unit in parts.units)
    if sharding.method == "fsdp":
        unreduced = 0 if sharding.reduce_every_microbatch else whole
        return SINGLE * shard + sharding.reduce_width * unreduced
    return sharding.reduce_width * (whole if sharding.method == "zero-1" else shard)


def staged_bytes(config: LlamaConfig, sharding: Sharding, parts: ModelShapes | None = None) -> int:
    """Return the host memory that a background save copies a rank's state to: weights, moments."""
    parts = parts or all_trained(config)
    return 3 * SINGLE * _shard((unit.trained for unit in parts.units), sharding.shards)


def shard_parameters(config: LlamaConfig, ranks: int) -> int:
    """Return the parameters of the first of so many ranks, which has the most."""
    return _shard((unit.all for unit in all_trained(config).units), ranks)


def _shard(units: Iterable[Shapes], ranks: int) -> int:
    return sum(shard_numbers(shapes, ranks) for shapes in units)


def _whole(parts: ModelShapes) -> int:
    return sum(num_numbers(unit.all) for unit in parts.units)


def _root_gathered(parts: ModelShapes, sharding: Sharding) -> int:
    if sharding.ranks == 1 or sharding.method in ("zero-1", "zero-2"):
        return _gathered(parts, sharding)
    if not sharding.reshard_after_forward:
        return _gathered(parts, sharding)
    return sharding.gather_width * num_numbers(parts.root.all)


def _gathered(parts: ModelShapes, sharding: Sharding) -> int:
    """On one rank the model computes on a whole copy, unless the weights have its type already."""
    width = sharding.gather_width
    if sharding.ranks == 1:
        return 0 if width == SINGLE else width * _whole(parts)
    if sharding.method in ("zero-1", "zero-2"):
        return 0  # whole weights are among the states
    layers = 2 if sharding.reshard_after_forward else len(parts.layers)
    return width * (num_numbers(parts.root.all) + layers * num_numbers(parts.layers[0].all))


def _head_gradient(config: LlamaConfig) -> int:
    """It is summed in float32 over chunks and exits (`trainer.head_loss`)."""
    return SINGLE * config.vocab_size * config.hidden_size


def _unreduced_layer(parts: ModelShapes, sharding: Sharding) -> int:
    """A gradient exists in the compute type, and once more in the type of its reduction."""
    if sharding.ranks == 1:
        return 0  # a part of the gradients, or of those of the copy
    most = max(num_numbers(unit.trained) for unit in parts.layers)
    return (sharding.gather_width + sharding.reduce_width) * most


def _unreduced_root(parts: ModelShapes, sharding: Sharding) -> int:
    if sharding.ranks == 1:  # gradients of the whole copy, until they are handed over
        whole = sum(num_numbers(unit.trained) for unit in parts.units)
        return 0 if sharding.gather_width == SINGLE else sharding.gather_width * whole
    return (sharding.gather_width + sharding.reduce_width) * num_numbers(parts.root.trained)
