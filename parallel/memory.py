"""The memory of one rank: pure functions of sizes. Peaks, that is, of the plan that drops nothing.

Layer dropout lowers the mean, but some step may keep every row, so a run has to have room for the
full plan. Letters: B rows, S positions, D width, F inner width, V vocabulary.
"""

from dataclasses import dataclass

from models.activations import layer_activation_bytes
from models.config import LlamaConfig
from models.flops import count_parameters, layer_parameters, layer_shapes, root_shapes
from parallel.cost import Sharding, shard_numbers

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


def rank_memory(config: LlamaConfig, sharding: Sharding, work: Workload) -> RankMemory:
    """Return the peak memory of the rank that holds the most."""
    tokens, width = work.rows * work.seq_len, sharding.gather_width
    kept = layer_activation_bytes(config, width=width, wide_attention=work.wide_attention)
    hidden = tokens * config.hidden_size * width
    layers = config.num_hidden_layers * (hidden if work.recompute else tokens * kept)
    activations, head = layers + 2 * hidden, _head_gradient(config)
    logits = min(tokens, work.chunk_tokens) * config.vocab_size * bytes_per_logit(width)
    # Beside a recomputed layer about three gradients of width F are alive (fitted to one shape).
    again = tokens * (kept + 3 * config.intermediate_size * width) if work.recompute else 0
    gradients, gathered = gradient_bytes(config, sharding), _gathered(config, sharding)
    begun = activations + head + (gradients if work.accumulate else 0)
    layer = _unreduced_layer(config, sharding)
    return RankMemory(
        states=state_bytes(config, sharding),
        gradients=gradients,
        gathered=gathered,
        activations=activations,
        loss=begun + _root_gathered(config, sharding) + logits,
        backward=begun + gathered + layer + again,
        reduction=gradients + gathered + layer + _unreduced_root(config, sharding),
    )


def bytes_per_logit(width: int) -> int:
    """Return what one logit of a chunk takes: float32, and the compute type if it is another."""
    return SINGLE + (width if width != SINGLE else 0)


def state_bytes(config: LlamaConfig, sharding: Sharding) -> int:
    """Return the bytes of weights and Adam's moments on the first rank.

    FSDP2: three float32 numbers a parameter, sharded. ZeRO (arXiv 1910.02054, section 5): weights
    in the compute type; master weights (in float32 too, as DeepSpeed has it) and moments sharded
    from stage 1, weights from stage 3. Adam's step counters, 4 bytes a tensor, are left out.
    """
    shard = shard_parameters(config, sharding.shards)
    if sharding.method == "fsdp":
        return 3 * SINGLE * shard
    weights = shard if sharding.method == "zero-3" else count_parameters(config).total
    return 3 * SINGLE * shard + sharding.gather_width * weights


def gradient_bytes(config: LlamaConfig, sharding: Sharding) -> int:
    """Return the bytes of the gradients that wait for the update; ZeRO shards them from stage 2."""
    shard = shard_parameters(config, sharding.shards)
    if sharding.method == "fsdp":
        whole = 0 if sharding.reduce_every_microbatch else count_parameters(config).total
        return SINGLE * shard + sharding.reduce_width * whole
    whole = count_parameters(config).total
    return sharding.reduce_width * (whole if sharding.method == "zero-1" else shard)


def staged_bytes(config: LlamaConfig, sharding: Sharding) -> int:
    """Return the host memory that a background save copies a rank's state to: weights, moments."""
    return 3 * SINGLE * shard_parameters(config, sharding.shards)


def shard_parameters(config: LlamaConfig, ranks: int) -> int:
    """Return the parameters of the first of so many ranks, which has the most."""
    layer = shard_numbers(layer_shapes(config), ranks)
    return config.num_hidden_layers * layer + shard_numbers(root_shapes(config), ranks)


def _root_parameters(config: LlamaConfig) -> int:
    return shard_numbers(root_shapes(config), 1)


def _root_gathered(config: LlamaConfig, sharding: Sharding) -> int:
    if sharding.ranks == 1 or sharding.method in ("zero-1", "zero-2"):
        return _gathered(config, sharding)
    stay = not sharding.reshard_after_forward
    return _gathered(config, sharding) if stay else sharding.gather_width * _root_parameters(config)


def _gathered(config: LlamaConfig, sharding: Sharding) -> int:
    """On one rank the model computes on a whole copy, unless the weights have its type already."""
    width, count = sharding.gather_width, count_parameters(config)
    if sharding.ranks == 1:
        return 0 if width == SINGLE else width * count.total
    if sharding.method in ("zero-1", "zero-2"):
        return 0  # whole weights are among the states
    layers = 2 if sharding.reshard_after_forward else config.num_hidden_layers
    return width * (_root_parameters(config) + layers * layer_parameters(config))


def _head_gradient(config: LlamaConfig) -> int:
    """It is summed in float32 over chunks and exits (`trainer.head_loss`)."""
    return SINGLE * config.vocab_size * config.hidden_size


def _unreduced_layer(config: LlamaConfig, sharding: Sharding) -> int:
    """A gradient exists in the compute type, and once more in the type of its reduction."""
    if sharding.ranks == 1:
        return 0  # a part of the gradients, or of those of the copy
    return (sharding.gather_width + sharding.reduce_width) * layer_parameters(config)


def _unreduced_root(config: LlamaConfig, sharding: Sharding) -> int:
    if sharding.ranks == 1:
        return _gathered(
            config, sharding
        )  # gradients of the whole copy, until they are handed over
    return (sharding.gather_width + sharding.reduce_width) * _root_parameters(config)
