"""What travels beside the residual stream: positions, document ids, cache. Cut only here.

Letters: B rows, S positions, T cached positions, G kv heads, E head width, K selected items.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from models.config import LlamaConfig
from models.documents import Documents, document_mask, make_documents
from models.plan import Selection
from models.rope import rotary_angles


class Places(NamedTuple):
    """Where a pass is to write keys and values itself; each position sees those up to its own."""

    keys: Tensor
    """(B, G, T, E), the buffer of the rows in the pass."""
    values: Tensor
    """As keys."""
    positions: Tensor
    """(B, anything) int64, among them those of the pass; those of a row follow each other."""
    first: int
    """The column of `positions` where the pass begins."""
    longest: int
    """No position is beyond it."""


class Cache(Protocol):
    """Keys and values of earlier positions, with a length of its own for every layer."""

    def reserve(self, layer: int, count: int) -> Places:
        """Take note that `count` positions are written; return where (B, G, T, E).

        The caller writes them at once. The other way to add keys and values is `append`.
        """
        ...

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
    documents: Documents | None = None
    """Given, attention stays inside each of them and there is neither mask nor cache."""

    @property
    def is_plainly_causal(self) -> bool:
        """Whether each position sees all before it and nothing else: no mask, cache, documents."""
        return self.mask is None and self.cache is None and self.documents is None

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
        documents = self.documents and self.documents.rows(rows)
        cos, sin = _index_rows(self.cos, rows), _index_rows(self.sin, rows)
        return replace(self, cos=cos, sin=sin, mask=mask, documents=documents)

    def _positions(self, tokens: Tensor) -> "Tokens":
        rows = torch.arange(tokens.shape[0], device=tokens.device)[:, None]  # (B, 1)

        def angles(x: Tensor) -> Tensor:
            return x.expand(tokens.shape[0], -1, -1)[rows, tokens]  # (B, K, E)

        mask = self.mask
        if mask is not None:
            mask = mask.expand(tokens.shape[0], -1, -1, -1)[:, 0]  # (B, S, S)
            mask = mask[rows[..., None], tokens[:, :, None], tokens[:, None, :]]  # (B, K, K)
            mask = mask[:, None]  # (B, 1, K, K)
        documents = self.documents and self.documents.positions(tokens)
        cos, sin = angles(self.cos), angles(self.sin)
        return replace(self, cos=cos, sin=sin, mask=mask, documents=documents)


def _index_rows(x: Tensor, rows: Tensor) -> Tensor:
    return x if x.shape[0] == 1 else x.index_select(0, rows)


_PACKED_ON = ("cpu", "cuda")
"""Devices with attention that visits nothing outside documents; others get a mask."""


def make_tokens(
    config: LlamaConfig,
    positions: Tensor,
    *,
    documents: Tensor | None = None,
    cache: Cache | None = None,
) -> Tokens:
    """Return the side data of a forward pass; what all layers share is computed once.

    Args:
        config: gives the rotary wavelengths.
        positions: (B, S), or (1, S) when all rows have the same.
        documents: (B, S) ids that never fall along a row; attention then stays inside a document.
            None lets it cross.
        cache: keys and values of earlier positions.

    Raises:
        ValueError: if there are both documents and a cache.
    """
    cos, sin = rotary_angles(positions, config)
    if documents is None:
        return Tokens(cos, sin, cache=cache)
    if cache is not None:
        raise ValueError("make_tokens got documents and a cache: a cache holds one document a row")
    if documents.device.type in _PACKED_ON:
        return Tokens(cos, sin, documents=make_documents(documents))
    return Tokens(cos, sin, mask=document_mask(documents))
