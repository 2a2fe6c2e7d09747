"""A transformer layer in its inference form: two fused projections, and one call for few positions.

Letters: B rows, S positions, T longest sequence, D width, H query heads, G kv heads, E head width,
F feed-forward width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from inference.fast.linear import FEW, ROWS_AT_ONCE, FastLinear, kernel
from inference.fast.passes import Passes
from inference.fast.segment import Segment
from inference.fast.structs import Do, Weights
from inference.fast.structs import Layer as LayerStruct
from models.attention import attend
from models.plan import Parts
from models.rope import rotate
from models.tokens import Tokens

MOST_POSITIONS, MOST_ITEMS = 64, 1024
"""Positions of a row, and rows times positions, up to which our attention is the faster one."""

WHAT = {
    Parts.ATTN: Do.ATTEND | Do.O,
    Parts.FFN: Do.GATE_UP | Do.DOWN,
    Parts.BOTH: Do.ATTEND | Do.O | Do.GATE_UP | Do.DOWN,
}
"""What the kernels do for the branches of a layer."""


class FastLayer(nn.Module):
    """Equals the layer that it was made of; `inference.fast.convert` makes it.

    What follows `o_proj` and `down_proj`, such as the sum over ranks that share a layer, stays:
    they are whatever modules the layer had.
    """

    def __init__(
        self,
        layer: int,
        head_width: int,
        norms: tuple[nn.RMSNorm, nn.RMSNorm],
        qkv_proj: FastLinear,
        o_proj: nn.Module,
        gate_up_proj: FastLinear,
        down_proj: nn.Module,
        passes: Passes,
    ) -> None:
        super().__init__()
        self.layer, self.head_width, self._passes = layer, head_width, passes
        self.input_layernorm, self.post_attention_layernorm = norms
        self.qkv_proj, self.o_proj = qkv_proj, o_proj
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        query_width = _inputs(o_proj)
        self.query_heads = query_width // head_width
        self.kv_heads = (qkv_proj.packed.shape[0] - query_width) // (2 * head_width)
        self.inner = gate_up_proj.packed.shape[0] // 2
        self.is_whole = isinstance(o_proj, FastLinear) and isinstance(down_proj, FastLinear)
        """Whether nothing but products stands between its norms."""
        self.struct = self._make_struct() if qkv_proj.struct is not None else None
        self._segments = {what: self._segment(what) for what in (*WHAT.values(), *Do)}

    def _segment(self, what: Do) -> Segment | None:
        if self.struct is None:
            return None
        call = kernel("layers", self.input_layernorm.weight.dtype)
        return Segment([(self.layer, self.struct, int(what))], call, self._passes)

    def _make_struct(self) -> LayerStruct:
        """Return the layer as the kernels see it; a module around a product is none of theirs."""
        norm, other = self.input_layernorm, self.post_attention_layernorm
        inner = (self.o_proj, self.down_proj) if self.is_whole else (None, None)
        o, down = (getattr(module, "struct", None) or Weights() for module in inner)
        return LayerStruct(
            norm.weight.data_ptr(),
            other.weight.data_ptr(),
            norm.eps or 0.0,
            self.query_heads,
            self.kv_heads,
            self.head_width,
            self.qkv_proj.struct or Weights(),
            o,
            self.gate_up_proj.struct or Weights(),
            down,
        )

    def forward(self, h: Tensor, tokens: Tokens, parts: Parts = Parts.BOTH) -> Tensor:
        """Return the residual stream (B, S, D) after the named branches of this layer."""
        if self.takes(h, tokens):
            return self._ours(h, tokens, parts)
        if Parts.ATTN in parts:
            h = h + self._attention(self.input_layernorm(h), tokens)
        if Parts.FFN not in parts or not h.numel():
            return h
        if self.gate_up_proj.is_in_tiles:
            pieces = torch.split(h.flatten(0, 1)[None], ROWS_AT_ONCE, dim=1)
            done = [self._ours(piece, tokens, Parts.FFN) for piece in pieces]
            return torch.cat(done, dim=1).view_as(h)
        return self._feed_forward(h)

    def _feed_forward(self, h: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(self.post_attention_layernorm(h)).chunk(2, dim=-1)
        return h + cast(Tensor, self.down_proj(silu(gate) * up))

    def _attention(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Return (B, S, D) of normed x, by the steps of `models.attention`."""
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        q, k, v = heads.split((self.query_heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = rotate(q, tokens.cos, tokens.sin), rotate(k, tokens.cos, tokens.sin)
        if tokens.cache is not None:
            k, v = tokens.cache.append(self.layer, k, v)  # (B, G, T, E)
        out = attend(q, k, v, tokens)  # (B, H, S, E)
        return cast(Tensor, self.o_proj(out.transpose(1, 2).flatten(2)))  # (B, S, D)

    def takes(self, h: Tensor, tokens: Tokens) -> bool:
        """Return whether our kernels are to run h (B, S, D): with a cache, and not too large."""
        rows, positions, width = h.shape
        count = rows * positions
        if self.struct is None or tokens.cache is None or not count:
            return False
        if self.gate_up_proj.is_in_tiles:
            return positions <= MOST_POSITIONS and count <= MOST_ITEMS
        if count > FEW:
            return False
        if not self.is_whole:  # trying out would sum over ranks
            return self.gate_up_proj.prefers_ours(h.view(count, width))
        return self._wins(h, tokens)

    def _wins(self, h: Tensor, tokens: Tokens) -> bool:
        """Return whether a branch of so many rows h (B, S, D) is faster by one call of ours.

        That the other way is several calls counts as well: in a small model it is what counts.
        """
        count = h.shape[0] * h.shape[1]
        what = h.dtype, self.gate_up_proj.packed.shape, 1 << (count - 1).bit_length()
        return self.gate_up_proj.chooser.wins(
            what,
            lambda: self._run(Do.GATE_UP | Do.DOWN, h, tokens),
            lambda: self._feed_forward(h),
        )

    def _ours(self, h: Tensor, tokens: Tokens, parts: Parts) -> Tensor:
        """Return (B, S, D) by our kernels, which write to the cache themselves."""
        if self.is_whole:
            return self._run(WHAT[parts], h, tokens)
        rows, positions, _ = h.shape
        if Parts.ATTN in parts:
            out = h.new_empty(rows, positions, self.query_heads * self.head_width)
            h = h + self.o_proj(self._run(Do.ATTEND, h, tokens, out))
        if Parts.FFN in parts:
            out = h.new_empty(rows, positions, self.inner)
            h = h + self.down_proj(self._run(Do.GATE_UP, h, tokens, out))
        return h

    def _run(self, what: Do, h: Tensor, tokens: Tokens, out: Tensor | None = None) -> Tensor:
        segment = self._segments[what]
        assert segment is not None, "only called with kernels"
        return segment.run(h, tokens, out)


def _inputs(module: nn.Module) -> int:
    """Return how many inputs the linear layer in a module has."""
    return next(m.packed.shape[1] for m in module.modules() if isinstance(m, FastLinear))
