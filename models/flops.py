"""Parameters of a Llama and floating-point operations of a plan: saved compute is computed.

Counted are the matrix products, two operations per multiply-add: projections, head, and attention
scores over all S x S pairs, not the causal half. That is what the PaLM paper (arXiv 2204.02311,
appendix B) and `torch.utils.flop_counter` count, so that model FLOPs utilisation is comparable. A
backward pass is twice the forward pass; what recomputation repeats is counted apart.

Letters: B rows, S positions, D width, H query heads, G kv heads, E head width, F inner width,
V vocabulary, L layers.
"""

from dataclasses import dataclass
from math import prod

from models.config import LlamaConfig
from models.plan import LayerPlan, Parts, Rows, Visit, full


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Where a model's parameters are; the four sum to all of them."""

    embedding: int
    """V * D."""
    layers: int
    """All L layers."""
    norm: int
    """The last one, before the head."""
    head: int
    """V * D, or 0 when the embedding is the head."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.layers + self.norm + self.head


def count_parameters(config: LlamaConfig) -> ParameterCount:
    """Return the parameters of a model by their place."""
    table = config.vocab_size * config.hidden_size
    return ParameterCount(
        embedding=table,
        layers=config.num_hidden_layers * layer_parameters(config),
        norm=config.hidden_size,
        head=0 if config.tie_word_embeddings else table,
    )


def num_parameters(config: LlamaConfig) -> int:
    """Return how many parameters a model has; tied embeddings count once."""
    return count_parameters(config).total


def layer_parameters(config: LlamaConfig) -> int:
    """Return how many parameters one layer has."""
    return sum(prod(shape) for shape in layer_shapes(config))


def layer_shapes(config: LlamaConfig) -> list[tuple[int, ...]]:
    """Return the shapes of one layer's weights, in the order of its modules."""
    width, inner = config.hidden_size, config.intermediate_size
    q_width, kv_width = _attention_widths(config)
    attention = [(q_width, width), (kv_width, width), (kv_width, width), (width, q_width)]
    mlp = [(inner, width), (inner, width), (width, inner)]
    shapes: list[tuple[int, ...]] = [(width,), *attention, (width,), *mlp]  # a norm before each
    if config.attention_bias:
        shapes += [(rows,) for rows, _ in attention]
    if config.mlp_bias:
        shapes += [(rows,) for rows, _ in mlp]
    return shapes


def root_shapes(config: LlamaConfig) -> list[tuple[int, ...]]:
    """Return the shapes of the weights outside the layers: embedding, norm, head unless tied."""
    table = (config.vocab_size, config.hidden_size)
    return [table, (config.hidden_size,), *([] if config.tie_word_embeddings else [table])]


def _attention_widths(config: LlamaConfig) -> tuple[int, int]:
    """Return H * E and G * E."""
    return config.num_attention_heads * config.head_width, config.kv_heads * config.head_width


def _attention_weights(config: LlamaConfig) -> int:
    q_width, kv_width = _attention_widths(config)
    return config.hidden_size * (2 * q_width + 2 * kv_width)


def flops_of_plan(
    plan: LayerPlan,
    config: LlamaConfig,
    *,
    rows: int,
    seq_len: int,
    num_exits_unembedded: int,
    backward: bool,
) -> float:
    """Return the floating-point operations of a plan on a batch of shape (B, S).

    Args:
        plan: visits with learned gates cannot be counted ahead of time.
        config: of the model.
        rows: B; a visit that `Rows` gates counts the rows it names instead.
        seq_len: S.
        num_exits_unembedded: how many exits get logits of shape (B, S, V).
        backward: count a training step rather than a forward pass: three times as many.

    Raises:
        ValueError: a visit has a gate that is not `Rows`.
    """
    layers = sum(_visit_flops(v, config, rows, seq_len) for v in plan.visits)
    heads = num_exits_unembedded * head_flops(config, rows, seq_len)
    return (3.0 if backward else 1.0) * (layers + heads)


def layer_flops(config: LlamaConfig, rows: int, seq_len: int) -> float:
    """Return the operations of one layer's forward pass on (B, S)."""
    return _visit_flops(Visit(0), config, rows, seq_len)


def head_flops(config: LlamaConfig, rows: int, seq_len: int) -> float:
    """Return the operations of one exit's logits (B, S, V)."""
    return 2.0 * rows * seq_len * config.hidden_size * config.vocab_size


def recomputed_layer_flops(config: LlamaConfig, rows: int, seq_len: int) -> float:
    """Return what recomputing one layer in the backward pass repeats of its forward pass on (B, S).

    `torch.utils.checkpoint` stops once all that the backward pass reads is there again, which is
    before the last product, the down projection.
    """
    last = 2.0 * rows * seq_len * config.hidden_size * config.intermediate_size
    return layer_flops(config, rows, seq_len) - last


def flop_fraction(plan: LayerPlan, config: LlamaConfig, rows: int, seq_len: int) -> float:
    """Return what a plan executes of all layers' operations on (B, S); the head is left out."""

    def layers_only(of: LayerPlan) -> float:
        return flops_of_plan(
            of, config, rows=rows, seq_len=seq_len, num_exits_unembedded=0, backward=False
        )

    return layers_only(plan) / layers_only(full(config.num_hidden_layers))


def _visit_flops(v: Visit, config: LlamaConfig, rows: int, seq_len: int) -> float:
    """Return the forward operations of one visit on (B, S)."""
    if isinstance(v.gate, Rows):
        rows = v.gate.rows.numel()
    elif v.gate is not None:
        raise ValueError(f"the FLOPs of a {type(v.gate).__name__} gate are not known ahead of time")
    per_token = 0
    if Parts.ATTN in v.parts:
        q_width, _ = _attention_widths(config)
        scores = 2 * seq_len * q_width  # queries by keys, then weights by values
        per_token += _attention_weights(config) + scores
    if Parts.FFN in v.parts:
        per_token += 3 * config.hidden_size * config.intermediate_size
    return 2.0 * rows * seq_len * per_token
