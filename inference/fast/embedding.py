"""The embedding of a model whose head has the same weights, once these lie in tiles for the head.

Letters: B rows, S positions, D width, V vocabulary.
"""

from torch import Tensor, nn

from inference.fast.pack import WIDTH


class TiledEmbedding(nn.Module):
    """Finds a token's numbers where the head's kernel has them, so that they exist once."""

    def __init__(self, tiles: Tensor, width: int) -> None:
        super().__init__()
        self.weight, self._width = tiles, width
        """(V / 16, D / 32, 16, 16, 2), see `inference.fast.pack.Packed`."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return (B, S, D) of token ids (B, S)."""
        found = self.weight[ids // WIDTH, :, :, ids % WIDTH]  # (B, S, D / 32, 16, 2)
        return found.flatten(-3)[..., : self._width]
