"""What a layer's forward pass keeps for its backward pass: the one place where that is written.

Held by a test against the tensors that autograd really saves, so a layer that keeps something else
is noticed. Letters: D width, H query heads, G kv heads, E head width, F inner width.
"""

from models.config import LlamaConfig

SINGLE = 4
"""Bytes of a float32 number."""


def kept_by_layer(
    config: LlamaConfig, *, width: int, wide_attention: bool = False
) -> dict[str, int]:
    """Return the bytes a token that one visit of a layer keeps, by what they are.

    Left out are weights, and what does not grow with the rows (angles, a few percent here).

    Args:
        config: of the model.
        width: bytes of a number in the compute type: 4, or 2 for bfloat16.
        wide_attention: whether attention is computed in float32 whatever the compute type, as for
            packed documents on a CPU (`models.attention`).
    """
    heads, kv_heads = config.num_attention_heads, config.kv_heads
    q_width, kv_width = heads * config.head_width, kv_heads * config.head_width
    attended = SINGLE if wide_attention else width
    kept = {
        "inputs of both norms": 2 * config.hidden_size * width,
        "reciprocal root mean squares": 2 * SINGLE,
        "outputs of both norms": 2 * config.hidden_size * width,
        "queries, keys, values, attended": (2 * q_width + 2 * kv_width) * attended,
        "log of the softmax's sum": heads * SINGLE,
        "gate, its silu, up, their product": 4 * config.intermediate_size * width,
    }
    if attended != width:
        kept["attended, in the compute type"] = q_width * width
    return kept


def layer_activation_bytes(config: LlamaConfig, *, width: int, wide_attention: bool = False) -> int:
    """Return the bytes a token that one visit of a layer keeps; see `kept_by_layer`."""
    return sum(kept_by_layer(config, width=width, wide_attention=wide_attention).values())
