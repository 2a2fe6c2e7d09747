"""Grouped-query attention with rotary positions (arXiv 2305.13245).

Letters: B rows, S positions, T all positions, D width, H query heads, G kv heads, E head width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.config import LlamaConfig
from models.cpu_attention import attend_in_bfloat16
from models.packed_attention import attend_inside
from models.rope import rotate
from models.tokens import Tokens


class Attention(nn.Module):
    """Attention of one layer; knows its layer id, under which it appends to the cache."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_width
        width, bias = config.hidden_size, config.attention_bias
        q_width, kv_width = (
            n * self.head_dim for n in (config.num_attention_heads, config.kv_heads)
        )
        self.q_proj = nn.Linear(width, q_width, bias=bias)
        self.k_proj = nn.Linear(width, kv_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_width, bias=bias)
        self.o_proj = nn.Linear(q_width, width, bias=bias)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return (B, S, D), what each position gathers from those it may see."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H or G, S, E)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, tokens.cos, tokens.sin), rotate(k, tokens.cos, tokens.sin)
        if tokens.cache is not None:
            k, v = tokens.cache.append(self.layer, k, v)  # (B, G, T, E)
        out = attend(q, k, v, tokens)  # (B, H, S, E)
        out = out.transpose(1, 2).flatten(2)  # (B, S, H * E); flatten works for zero rows too
        result: Tensor = self.o_proj(out)  # (B, S, D)
        return result


def attend(q: Tensor, k: Tensor, v: Tensor, tokens: Tokens) -> Tensor:
    """Return softmax(q k') v (B, H, S, E) for q (B, H, S, E) and k, v (B, G, T, E).

    Who sees whom is said by the tokens.
    """
    dtype = q.dtype
    if dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad:
        if tokens.is_plainly_causal and not torch.compiler.is_compiling():
            return attend_in_bfloat16(q, k, v)
        # The CPU kernel's bfloat16 backward takes 2 to 3 times as long as its float32 one.
        q, k, v = q.float(), k.float(), v.float()
    if tokens.documents is not None:
        return attend_inside(q, k, v, tokens.documents).to(dtype)
    mask, is_causal = _visibility(tokens, q.shape[2], k.shape[2])
    gqa = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=gqa)
    return out.to(dtype)


def _visibility(tokens: Tokens, num_queries: int, num_keys: int) -> tuple[Tensor | None, bool]:
    """Return the mask for SDPA, or the flag that spares one: the S queries are the last of T."""
    if tokens.mask is not None:
        return tokens.mask, False
    if num_queries == num_keys or num_queries == 1:
        return None, num_queries > 1
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=tokens.cos.device)
    return ones.tril(diagonal=num_keys - num_queries), False
