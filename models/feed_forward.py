"""The SwiGLU feed-forward branch (arXiv 2002.05202)."""

from torch import Tensor, nn
from torch.nn.functional import silu

from models.config import LlamaConfig


class FeedForward(nn.Module):
    """Gate, up and down projections; works on each position alone."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, S, D) from x (B, S, D)."""
        out: Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out
