"""Tensor parallel decoding (Megatron-LM, arXiv 1909.08053): each rank holds a share of every layer.

A rank has some query heads with the key and value heads that they look at, some of the feed-forward
width, some rows of the embedding and of the head. What writes into the residual stream is summed
over ranks, what leaves the model is gathered. In between the model is a `Llama` with fewer heads:
plans, caches and decoding loops need not know.

Every rank draws the same tokens. Logits are the same bits everywhere, because each part of them
comes from one rank; ids that enter are rank 0's; and what the host decides on goes through
`parallel.share`, since samples may differ by rounding (an accelerator's cumulative sums do).

Letters: N ranks, B rows, S positions, D width, H query heads, G kv heads, E head width, F
feed-forward width, V vocabulary, C rows of the vocabulary on a rank.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch.distributed as dist
from torch import Tensor, nn

from models.config import LlamaConfig
from models.execute import Call, plain_call
from models.layer import Layer
from models.llama import Llama
from models.plan import LayerPlan
from models.tokens import Tokens


class SummedLinear(nn.Module):
    """A linear layer whose input features are spread over the ranks."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        inputs, outputs, kind = linear.in_features, linear.out_features, linear.weight.dtype
        self.linear = nn.Linear(inputs, outputs, bias=False, dtype=kind)
        self.bias = linear.bias  # whole on every rank, and added once

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, S, D), the same on every rank, from this rank's features of x (B, S, ...)."""
        out: Tensor = self.linear(x)
        dist.all_reduce(out)
        return out if self.bias is None else out + self.bias


class TensorLlama(Llama):
    """One rank's share of a Llama; `config` describes the share, `whole` the model."""

    def __init__(self, config: LlamaConfig, rank: int, size: int) -> None:
        super().__init__(local_config(config, size))
        self.whole, self.rank, self.size = config, rank, size
        self.rows = -(-config.vocab_size // size)
        """C; some of the last rank's, or all, may be beyond the vocabulary and zeros."""
        self.model.embed_tokens = nn.Embedding(self.rows, config.hidden_size)
        if self.lm_head is not None:
            self.lm_head = nn.Linear(config.hidden_size, self.rows, bias=False)
        for layer in cast(Iterable[Layer], self.layers.values()):
            layer.self_attn.add_module("o_proj", SummedLinear(layer.self_attn.o_proj))
            layer.mlp.add_module("down_proj", SummedLinear(layer.mlp.down_proj))

    def forward(
        self, ids: Tensor, tokens: Tokens, plan: LayerPlan, call: Call = plain_call
    ) -> dict[int, Tensor]:
        """Run a plan on rank 0's token ids (B, S), or on hidden states (B, S, D); see `Llama`.

        Returns:
            For each exit of the plan, the residual stream (B, S, D) there.
        """
        h = self._embed(ids) if ids.dim() == 2 else ids
        return super().forward(h, tokens, plan, call)

    def _embed(self, ids: Tensor) -> Tensor:
        """Return (B, S, D) of rank 0's ids (B, S): each rank looks up those that it has."""
        ids = ids.clone()
        dist.broadcast(ids, 0)
        own = ids - self.rank * self.rows
        is_here = (own >= 0) & (own < self.rows)
        h = self.model.embed_tokens(own.where(is_here, 0)).where(is_here[..., None], 0)
        dist.all_reduce(h)  # (B, S, D)
        return cast(Tensor, h)

    def unembed(self, h: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., D), gathered: equal on all ranks."""
        part = super().unembed(h).contiguous()  # (..., C)
        parts = part.new_empty((self.size, *part.shape))  # (N, ..., C)
        dist.all_gather_single(parts.view(-1), part.view(-1))
        logits = parts.movedim(0, -2).flatten(-2)  # (..., N * C)
        return logits.narrow(-1, 0, self.whole.vocab_size)


def local_config(config: LlamaConfig, size: int) -> LlamaConfig:
    """Return the shape of one rank's share; vocabulary and width stay those of the model.

    With fewer kv heads than ranks, several ranks hold the same one.

    Raises:
        ValueError: if the heads cannot be divided so that a rank's share looks like a model.
    """
    heads, kv_heads = config.num_attention_heads, config.kv_heads
    counts = [n for n in range(1, heads + 1) if _divides(heads, kv_heads, n)]
    if size not in counts:
        raise ValueError(
            f"{size} ranks cannot share {heads} query and {kv_heads} key-value heads: start "
            f"{', '.join(map(str, counts))} ranks, or set ranks=data"
        )
    return replace(
        config,
        num_attention_heads=heads // size,
        num_key_value_heads=max(1, kv_heads // size),
        head_dim=config.head_width,
        intermediate_size=-(-config.intermediate_size // size),  # padded with zeros
    )


def _divides(heads: int, kv_heads: int, size: int) -> bool:
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
