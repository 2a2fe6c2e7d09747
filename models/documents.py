"""Packed documents: which positions of a row belong together.

Letters: B rows, S positions, N blocks of positions, K selected items.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Positions of a block of flex attention."""


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """The documents of a batch, as attention on its device wants to know them."""

    ids: Tensor
    """(B, S), never falling along a row: a document is a run of equal ids."""
    blocks: BlockMask | None
    """What flex attention visits; None on a CPU, which goes from document to document."""

    def rows(self, rows: Tensor) -> "Documents":
        """Return those of the rows (K,)."""
        return make_documents(self.ids.index_select(0, rows))

    def positions(self, tokens: Tensor) -> "Documents":
        """Return those of sorted positions (B, K), different ones in each row."""
        return make_documents(self.ids.gather(1, tokens))


def make_documents(ids: Tensor) -> Documents:
    """Return the documents of ids (B, S)."""
    return Documents(ids, None if ids.device.type == "cpu" else document_blocks(ids))


def document_mask(ids: Tensor) -> Tensor:
    """Return (B, 1, S, S), True where a position sees its document's past, of ids (B, S)."""
    same = ids[:, :, None] == ids[:, None, :]  # (B, S, S)
    return same.tril()[:, None]


def document_blocks(ids: Tensor) -> BlockMask:
    """Return the blocks of queries and keys that flex attention visits, of ids (B, S).

    As ids never fall, the first and last one of each block tell whether two blocks share a document
    and whether both lie in it whole. That takes a table of N x N and no wait for the device, little
    enough to do anew for the rows of every layer; `create_block_mask` begins with S x S.
    """
    length = ids.shape[1]
    first = ids[:, ::BLOCK]  # (B, N)
    beyond = ids[:, -1:] + 1  # what fills up the last block is of another document
    last = torch.cat((ids[:, BLOCK - 1 :: BLOCK], beyond), dim=1)[:, : first.shape[1]]  # (B, N)
    meet = (first[:, :, None] <= last[:, None, :]).tril()  # (B, N, N), queries by keys
    whole = (last[:, :, None] == first[:, None, :]).tril(-1)  # one document, and keys in the past

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (ids[row, query] == ids[row, key]) & (key <= query)

    return BlockMask.from_kv_blocks(
        *_listed(meet & ~whole),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(length, length),
    )


def _listed(visited: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many keys' blocks each queries' block visits (B, 1, N), and which (B, 1, N, N)."""
    table = visited[:, None].int()  # (B, 1, N, N)
    order = table.argsort(dim=-1, descending=True, stable=True)  # the visited ones come first
    return table.sum(dim=-1, dtype=torch.int32), order.int()
