"""What travels beside the residual stream: positions, document ids, cache. Cut only here.

Letters: B rows, S positions, T cached positions, G kv heads, E head width, K selected items.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from models.config import LlamaConfig
from models.plan import Selection
from models.rope import rotary_angles


class Cache(Protocol):
    """Keys and values of earlier positions, with a length of its own for every layer."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, G, S, E) of one layer; return all of them (B, G, T + S, E)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Side data of the positions in flight. The first dimension may be 1, shared by all rows."""

    cos: Tensor
    """(B, S, E) or (1, S, E), float32."""
    sin: Tensor
    """As cos."""
    mask: Tensor | None = None
    """(B, 1, S, S) or (S, T), True where a position may look, or 0 there and -inf elsewhere; None
    means causal over everything."""
    cache: Cache | None = None

    def take(self, selection: Selection) -> "Tokens":
        """Cut everything to the selection. The only place where side data is cut (law 4).

        Raises:
            ValueError: if there is a cache: a selection of a cached batch has no meaning yet.
        """
        if self.cache is not None:
            raise ValueError("a visit that selects rows or tokens cannot use a KV cache")
        cut = self
        if selection.rows is not None:
            cut = cut._rows(selection.rows)
        if selection.tokens is not None:
            cut = cut._positions(selection.tokens)
        return cut

    def _rows(self, rows: Tensor) -> "Tokens":
        mask = self.mask if self.mask is None else _index_rows(self.mask, rows)
        return replace(
            self, cos=_index_rows(self.cos, rows), sin=_index_rows(self.sin, rows), mask=mask
        )

    def _positions(self, tokens: Tensor) -> "Tokens":
        rows = torch.arange(tokens.shape[0], device=tokens.device)[:, None]  # (B, 1)

        def angles(x: Tensor) -> Tensor:
            return x.expand(tokens.shape[0], -1, -1)[rows, tokens]  # (B, K, E)

        mask = self.mask
        if mask is not None:
            mask = mask.expand(tokens.shape[0], -1, -1, -1)[:, 0]  # (B, S, S)
            mask = mask[rows[..., None], tokens[:, :, None], tokens[:, None, :]]  # (B, K, K)
            mask = mask[:, None]  # (B, 1, K, K)
        return replace(self, cos=angles(self.cos), sin=angles(self.sin), mask=mask)


def _index_rows(x: Tensor, rows: Tensor) -> Tensor:
    return x if x.shape[0] == 1 else x.index_select(0, rows)


def make_tokens(
    config: LlamaConfig,
    positions: Tensor,
    *,
    documents: Tensor | None = None,
    cache: Cache | None = None,
) -> Tokens:
    """Return the side data of a forward pass; angles and mask are computed once for all layers.

    Args:
        config: gives the rotary wavelengths.
        positions: (B, S), or (1, S) when all rows have the same.
        documents: (B, S) ids; attention then stays inside a document. None lets it cross.
        cache: keys and values of earlier positions.
    """
    cos, sin = rotary_angles(positions, config)
    mask = None
    if documents is not None:
        length = documents.shape[1]
        same = documents[:, :, None] == documents[:, None, :]  # (B, S, S)
        causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
        mask = (same & causal)[:, None]  # (B, 1, S, S)
    return Tokens(cos, sin, mask, cache)
