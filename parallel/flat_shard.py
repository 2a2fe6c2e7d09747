"""A shard that is a range of a parameter's elements, as DeepSpeed cuts parameters.

FSDP2 cuts between rows, and a DTensor says where. DeepSpeed lines elements up in row-major order
and cuts anywhere. Such a range is a few boxes: a piece of a row, whole rows, a piece of a row.
Checkpoints are written and read box by box, so both kinds of shard share one format.
"""

from collections.abc import Iterator
from math import prod

from torch import Tensor

from parallel.box_shard import Box, BoxShard


def boxes(local: Tensor, shape: tuple[int, ...], start: int) -> Iterator[Box]:
    """Cut a range of a tensor's elements into boxes.

    Args:
        local: the elements (N,) in row-major order.
        shape: of the whole tensor, at least one dimension.
        start: index of the first element among all of the whole.
    """
    if len(local) == 0:
        return
    if len(shape) == 1:
        yield Box((start,), local)
        return
    row, end = prod(shape[1:]), start + len(local)
    first = min(end, -(-start // row) * row)  # where the first whole row begins
    last = max(first, end // row * row)  # where the last whole row ends
    if start < first:
        yield from _in_row(start // row, local[: first - start], shape, start % row)
    if first < last:
        whole = local[first - start : last - start].view(-1, *shape[1:])
        yield Box((first // row, *(0 for _ in shape[1:])), whole)
    if last < end:
        yield from _in_row(last // row, local[last - start :], shape, 0)


def _in_row(index: int, local: Tensor, shape: tuple[int, ...], start: int) -> Iterator[Box]:
    """Cut a range (N,) that lies within one row."""
    for box in boxes(local, shape[1:], start):
        yield Box((index, *box.offset), box.part[None])


class FlatShard(BoxShard):
    """What one rank holds of a tensor of any shape; nothing but its size can be computed with."""

    _local: Tensor
    start: int
    """Index of the first element."""

    @staticmethod
    def __new__(cls, local: Tensor, shape: tuple[int, ...], start: int) -> "FlatShard":
        """Wrap elements.

        Args:
            local: the rank's elements (N,), of which writing changes the state; may be none.
            shape: of the whole tensor.
            start: index of the first of them.
        """
        shard: FlatShard = cls.wrap(list(boxes(local, shape, start)), shape, like=local)
        shard._local = local
        shard.start = start
        return shard

    def to_local(self) -> Tensor:
        """Return the elements of this rank (N,)."""
        return self._local

    def like(self, local: Tensor) -> "FlatShard":
        """Return the same part of the whole, with other elements (N,)."""
        return FlatShard(local, tuple(self.shape), self.start)
