"""What self-speculative decoding should gain over plain decoding: a closed form of counts.

One sequence is decoded at the speed at which weights can be read: a pass through a layer costs the
layer's weights once, for one position as for the few of a verification. A round that drafts d
tokens at exit E takes d + 1 tokens singly through E layers, asks the head for each draft, and
verifies in one pass through the other L - E layers and the head (LayerSkip, arXiv 2404.16710,
appendix A.4):

    cost(d) = (d E + L) layer + (d + 1) head           in weights read; cost(0) is a plain step
    speedup = (accepted + rounds) cost(0) / sum over the rounds of cost(d)

Left out: keys and values, norms, sampling, the host. Where arithmetic is the limit, as in large
batches, each position costs for itself, d + 1 tokens pass all layers, and no speedup is possible.
"""

from models.config import LlamaConfig
from models.flops import layer_parameters


def expected_speedup(
    config: LlamaConfig, exit_layer: int, *, rounds: float, drafted: float, accepted: float
) -> float:
    """Return how many times as fast as plain decoding these rounds are where reading is the limit.

    Args:
        config: of the model.
        exit_layer: E, 1..L-1.
        rounds: how many, those that drafted nothing included; at least 1.
        drafted: tokens drafted in them, all together.
        accepted: so many of these were right.
    """
    layer, head = layer_parameters(config), config.vocab_size * config.hidden_size
    depth = config.num_hidden_layers
    layers_read = drafted * exit_layer + rounds * depth
    cost = layers_read * layer + (drafted + rounds) * head
    return (accepted + rounds) * (depth * layer + head) / cost
