"""One transformer layer: the unit that plans visit and that is sharded, compiled, recomputed."""

from torch import Tensor, nn

from models.attention import Attention
from models.config import LlamaConfig
from models.feed_forward import FeedForward
from models.norm import RMSNorm
from models.plan import Parts
from models.tokens import Tokens


class Layer(nn.Module):
    """Pre-norm attention and feed-forward branches, each added to the residual stream.

    The attribute names are those of transformers' `LlamaDecoderLayer`, so a checkpoint needs no
    renaming.
    """

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, h: Tensor, tokens: Tokens, parts: Parts = Parts.BOTH) -> Tensor:
        """Return the residual stream (B, S, D) after the named branches of this layer."""
        if Parts.ATTN in parts:
            h = h + self.self_attn(self.input_layernorm(h), tokens)
        if Parts.FFN in parts:
            h = h + self.mlp(self.post_attention_layernorm(h))
        return h
